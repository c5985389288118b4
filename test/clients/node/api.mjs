// Calls of the legacy HTTP API, made with the client that its users have. These
// variables name the environment; the tests are skipped without it:
//
//   BATCHTASK_API_URL, BATCHTASK_SECRET_ID, BATCHTASK_SECRET_KEY: the API and
//     credentials, as make dev writes them to .dev/env. The account has no waiting
//     tasks and may have five. The front allows 1,000 calls a second (--rate-limit).
//   BATCHTASK_PRODUCT_ID: a product whose devices listen to the topic "event" and
//     report nothing; one is named door-1, and names of some, but not of all, begin
//     with "door". ABCDE12345.
//   BATCHTASK_CONFLICT_PRODUCT_ID: a product of the account whose ID belongs to
//     another. One test is skipped without it.
//   BATCHTASK_SLOW_URL: the same API with a rate of 1/s, at once 2. One test is
//     skipped without it.

import assert from 'node:assert/strict'
import { setTimeout as pause } from 'node:timers/promises'
import Qcloud from 'qcloudapi-sdk'

export const environment = process.env
export const apiURL = environment.BATCHTASK_API_URL
export const skip = apiURL ? false : 'BATCHTASK_API_URL is not set: run make dev, and in another terminal `. .dev/env`'
export const product = environment.BATCHTASK_PRODUCT_ID || 'ABCDE12345'
export const unknownTask = '5ad5aa513332ea4cb86e9ad5'

// ways are how the client sends and signs.
export const ways = ['POST', 'GET'].flatMap((method) =>
  ['sha1', 'sha256'].map((signatureMethod) => ({ method, signatureMethod, name: `${method} ${signatureMethod}` })),
)

// The client draws its Nonce from 65,536 numbers. Tests make so many calls a second
// that two would have the same one now and then, and the second be refused as seen
// before; so here they are counted, from the millisecond: another file, which begins later,
// then begins with a greater number than this one has come to.
let nonce = Date.now() % 65536
Math.random = () => (++nonce % 65536) / 65535

// call makes one call and returns the answer. The options are those of the client;
// url is the API's, extra goes to the library below the client.
export function call(way, data, { url = apiURL, extra = {}, ...options } = {}) {
  const { protocol, host } = new URL(url)
  const client = new Qcloud({
    SecretId: environment.BATCHTASK_SECRET_ID,
    SecretKey: environment.BATCHTASK_SECRET_KEY,
    Region: 'gz',
    serviceType: 'iotcloud',
    method: way.method,
    signatureMethod: way.signatureMethod,
    protocol: protocol.slice(0, -1),
    host,
    ...options,
  })
  return new Promise((resolve, reject) => {
    const answered = (error, answer) => (error ? reject(error) : resolve(answer))
    client.request(data, client.defaults, answered, { timeout: 30_000, ...extra })
  })
}

// good makes a call that must succeed.
export async function good(way, data, options) {
  const answer = await call(way, data, options)
  assert.deepEqual({ code: answer.code, message: answer.message, codeDesc: answer.codeDesc }, { code: 0, message: '', codeDesc: 'Success' })
  return answer
}

// refused makes a call that must fail: with a public code, or with the module code
// that the message begins with.
export async function refused(way, data, want, options) {
  const { code, message, codeDesc } = await call(way, data, options)
  assert.ok(
    code !== 0 && codeDesc && (want in fixedTexts ? message.startsWith(`（${want}）${fixedTexts[want]}`) : code === want && message),
    `want ${want}, got code ${code}, message ${message}, codeDesc ${codeDesc}`,
  )
  return message
}

// fixedTexts are those of the module codes.
const fixedTexts = {
  10001: '任务不存在',
  10002: '参数非法',
  10003: '任务已经开始',
  10004: '产品不存在',
  10005: '等待和处理中的任务数过多',
  10100: '内部服务器错误，请联系技术人员',
  10101: '请求参数非法',
  5000: '请求中缺少关键字段信息',
  5002: 'State JSON对象的层数超过了限制',
  5003: 'State JSON对象中包含非法节点',
  5004: 'State不是合法的JSON对象',
  5005: '更新版本不匹配',
  5006: 'State JSON对象超过大小限制',
  5101: '请求参数非法',
  5102: '用户不存在此产品或设备',
  7000: '消息topic非法',
  7002: '消息长度非法',
  7101: '请求参数非法',
  7102: '用户不存在此产品或设备',
}

// creation is a call for a PublishMessage task; tasks may be text or an object.
export function creation(payload, more = {}) {
  return {
    Action: 'CreateTask',
    taskType: 'PublishMessage',
    productID: product,
    deviceNameFilter: '^door',
    scheduleTimeInSeconds: 0,
    tasks: JSON.stringify({ publishMessageTask: { topic: 'event', payload } }),
    ...more,
  }
}

export const inAnHour = () => Math.floor(Date.now() / 1000) + 3600

// create creates a task that should be accepted, and returns its ID. The place of
// a task that has just ended becomes free a moment later.
export async function create(way, data, options) {
  const deadline = Date.now() + 60_000
  for (;;) {
    const answer = await call(way, data, options)
    if (answer.code === 4400 && Date.now() < deadline) {
      await pause(100)
      continue
    }
    assert.equal(answer.code, 0, answer.message)
    assert.match(answer.taskId, /^[0-9a-f]{24}$/)
    return answer.taskId
  }
}

// finish waits until a task has a status from 3 on, which is an end.
export async function finish(way, id) {
  const deadline = Date.now() + 60_000
  for (;;) {
    const task = await good(way, { Action: 'DescribeTask', id })
    if (task.status >= 3) return task
    assert.ok(Date.now() < deadline, `the task is not at an end: ${JSON.stringify(task)}`)
    await pause(50)
  }
}
