import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import { apiURL, call, create, creation, environment, finish, good, inAnHour, product, refused, skip, unknownTask, ways } from './api.mjs'

// awkward holds what one encoding or another gets wrong.
const awkward = ' 100% "a=b" & c+d; {} 门 @ é'
const list = { Action: 'ListTasks', pageNum: 1, pageSize: 250 }

// forms are how programs write tasks.
const forms = {
  'as text': (tasks) => JSON.stringify(tasks),
  'as an object': (tasks) => tasks,
}

for (const way of ways) {
  for (const [form, write] of Object.entries(forms)) {
    test(`a message, ${form}, ${way.name}`, { skip }, async () => {
      const began = Math.floor(Date.now() / 1000)
      const tasks = write({ publishMessageTask: { topic: 'event', payload: `node ${way.name}, ${form}${awkward}` } })
      const id = await create(way, creation('', { tasks, deviceNameFilter: '^door[^&=+ %]*$', maxExecutionTimeInSeconds: 600 }))
      await checkDone(way, id, 'PublishMessage', began)
    })

    test(`a shadow, ${form}, ${way.name}`, { skip }, async () => {
      const began = Math.floor(Date.now() / 1000)
      const desired = JSON.stringify({ state: 'open', said: way.name + awkward })
      const tasks = write({ updateShadowTask: { desired } })
      await checkDone(way, await create(way, creation('', { taskType: 'UpdateShadow', tasks })), 'UpdateShadow', began)
    })
  }

  // Names resolve to this API, as a user's own DNS or a gateway may do it.
  test(`a client that believes to call the cloud, ${way.name}`, { skip }, async () => {
    const options = { host: undefined, extra: { proxy: apiURL } }
    const id = await create(way, creation(`node unknowing ${way.name}`), options)
    await finish(way, id)
  })

  test(`cancel, ${way.name}`, { skip }, async () => {
    const scheduleTimeInSeconds = inAnHour()
    const id = await create(way, creation('later', { scheduleTimeInSeconds }))
    const waiting = await good(way, { Action: 'DescribeTask', id })
    assert.deepEqual([waiting.status, waiting.scheduleTime, waiting.doneTime], [1, scheduleTimeInSeconds, 0])
    assert.deepEqual(await call(way, { Action: 'CancelTask', id }), { message: '', codeDesc: 'Success', code: 0 })
    assert.equal((await finish(way, id)).status, 5)
  })
}

async function checkDone(way, id, type, began) {
  const task = await finish(way, id)
  assert.deepEqual(
    { type: task.type, id: task.id, productID: task.productID, status: task.status, percent: task.percent, retCode: task.retCode, errMsg: task.errMsg },
    { type, id, productID: product, status: 3, percent: 100, retCode: 0, errMsg: '' },
  )
  assert.ok(task.allDeviceCnt > 0 && task.doneDeviceCnt === task.allDeviceCnt, JSON.stringify(task))
  for (const name of ['createTime', 'updateTime', 'doneTime', 'scheduleTime']) {
    assert.ok(task[name] >= began - 5 && task[name] < began + 120, `${name} ${task[name]}, want about ${began}`)
  }
  const all = await good(way, list)
  assert.equal(all.taskTotalCount, all.tasks.length)
  // Newest first, by the second.
  assert.deepEqual(all.tasks.map((t) => t.createTime), all.tasks.map((t) => t.createTime).sort((a, b) => b - a))
  assert.deepEqual(all.tasks.find((t) => t.id === id), {
    type, id, productID: product, status: 3, createTime: task.createTime, updateTime: task.updateTime, retCode: 0, errMsg: '',
  })
}

test('pages are cut from one list', { skip }, async () => {
  const all = await good(ways[0], list)
  for (const way of ways) {
    const page = await good(way, { Action: 'ListTasks', pageNum: 2, pageSize: 3 })
    assert.deepEqual(page.tasks, all.tasks.slice(3, 6))
    assert.equal(page.taskTotalCount, all.taskTotalCount)
  }
})

// The client takes a text that begins with "@" for the name of a file, and does
// not sign it in a POST.
test('a payload that begins with @', { skip }, async () => {
  const data = creation('', { tasks: { publishMessageTask: { topic: 'event', payload: '@door' } } })
  for (const way of ways) {
    if (way.method === 'POST') await refused(way, data, 4100)
    else await finish(way, await create(way, data))
  }
})

function without(name) {
  const data = creation('x')
  delete data[name]
  return data
}

test('what is refused', { skip }, async (t) => {
  for (const [what, want, data] of [
    ['describe a task that does not exist', 10001, { Action: 'DescribeTask', id: unknownTask }],
    ['cancel a task that does not exist', 10001, { Action: 'CancelTask', id: unknownTask }],
    ['an ID that no task can have', 10001, { Action: 'DescribeTask', id: '../secrets' }],
    ['not a regular expression', 10002, creation('x', { deviceNameFilter: '(' })],
    ['a time that is past', 10002, creation('x', { scheduleTimeInSeconds: 1524000000 })],
    ['too long', 10002, creation('x', { maxExecutionTimeInSeconds: 86401 })],
    ['no such type', 10002, creation('x', { taskType: 'Dance' })],
    ['a topic with a wildcard', 10002, creation('x', { tasks: { publishMessageTask: { topic: '#', payload: 'x' } } })],
    ['desired is no object', 10002, creation('x', { taskType: 'UpdateShadow', tasks: { updateShadowTask: { desired: '[1]' } } })],
    ['a page that is too long', 10002, { ...list, pageSize: 251 }],
    ['page 0', 10002, { ...list, pageNum: 0 }],
    ['no product with this ID', 10004, creation('x', { productID: 'NONE123456' })],
    ['an empty product', 10002, creation('x', { productID: '' })],
    ['no product', 10101, without('productID')],
    ['no ID', 10101, { Action: 'DescribeTask' }],
    ['tasks is no object', 10101, creation('x', { tasks: '[]' })],
    ['tasks is no JSON', 10101, creation('x', { tasks: '{' })],
    ['no tasks of the type', 10101, creation('x', { taskType: 'UpdateShadow' })],
    ['a time that is no number', 10101, creation('x', { scheduleTimeInSeconds: 'soon' })],
    ['no such action', 4000, { Action: 'CreateTasks' }],
    ['a token', 4105, { ...list, Token: 'temporary' }],
  ]) {
    await t.test(what, async () => {
      for (const way of ways) await refused(way, data, want)
    })
  }
})

test('credentials', { skip }, async () => {
  for (const way of ways) {
    await refused(way, list, 4100, { SecretKey: environment.BATCHTASK_SECRET_KEY + 'x' })
    await refused(way, list, 4104, { SecretId: 'AKIDnobody' })
    await refused(way, { ...list, SecretId: '' }, 4100)
  }
})

test('a computer whose clock is wrong', { skip }, async () => {
  const now = Date.now
  for (const way of ways) {
    for (const [seconds, want] of [[-600, 4200], [600, 4200], [-60, 0], [60, 0]]) {
      mock.method(Date, 'now', () => now() + seconds * 1000)
      const answering = want ? refused(way, list, want) : good(way, list)
      mock.restoreAll() // the client has read the time
      await answering
    }
  }
})

test('the same call twice', { skip }, async () => {
  for (const way of ways) {
    const at = Date.now()
    const random = Math.random()
    const again = (want) => {
      mock.method(Date, 'now', () => at)
      mock.method(Math, 'random', () => random)
      const answering = want ? refused(way, list, want) : good(way, list)
      mock.restoreAll()
      return answering
    }
    await again()
    await again(4500)
  }
})

test('cancel a task that has started', { skip }, async () => {
  const id = await create(ways[0], creation('started'))
  await finish(ways[0], id)
  for (const way of ways) await refused(way, { Action: 'CancelTask', id }, 10003)
})

test('more than five tasks', { skip }, async () => {
  const later = creation('later', { scheduleTimeInSeconds: inAnHour() })
  const ids = []
  while (ids.length < 5) ids.push(await create(ways[0], later))
  for (const way of ways) await refused(way, later, 10005)
  for (const id of ids) await good(ways[0], { Action: 'CancelTask', id })
  await create(ways[0], creation('free again'))
})

// A product whose ID belongs to another account is nothing that a caller can mend.
test('a product ID that another account has', { skip: skip || !environment.BATCHTASK_CONFLICT_PRODUCT_ID }, async () => {
  const data = creation('x', { productID: environment.BATCHTASK_CONFLICT_PRODUCT_ID })
  for (const way of ways) await refused(way, data, 10100)
})

test('too many calls', { skip: skip || !environment.BATCHTASK_SLOW_URL }, async () => {
  const answers = []
  while (answers.length < 20 && answers.at(-1)?.code !== 4400) {
    answers.push(await call(ways[answers.length % ways.length], list, { url: environment.BATCHTASK_SLOW_URL }))
  }
  const last = answers.pop()
  assert.deepEqual([last.code, last.codeDesc], [4400, 'RequestLimitExceeded'])
  assert.ok(answers.length >= 2 && answers.every((answer) => answer.code === 0), JSON.stringify(answers))
})

// The client can call the current API too, with the signature of the legacy one.
test('the current API', { skip }, async () => {
  for (const way of ways) {
    const v3 = { path: '/' }
    const common = { Version: '2018-06-14', SignatureMethod: way.signatureMethod === 'sha256' ? 'HmacSHA256' : 'HmacSHA1' }
    const Tasks = { PublishMessageTask: { Topic: 'event', Payload: `node v3 ${way.name}${awkward}` } }
    const created = await call(way, {
      ...common, Action: 'CreateTask', TaskType: 'PublishMessage', ProductId: product, DeviceNameFilter: '^door', ScheduleTimeInSeconds: 0, Tasks,
    }, v3)
    assert.match(created.Response.TaskId ?? JSON.stringify(created), /^[0-9a-f]{24}$/)
    await finish(way, created.Response.TaskId)
    const missing = await call(way, { ...common, Action: 'DescribeTask', Id: unknownTask }, v3)
    assert.equal(missing.Response.Error.Code, 'ResourceNotFound.TaskNotExist')
  }
})
