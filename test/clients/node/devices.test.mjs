import assert from 'node:assert/strict'
import { test } from 'node:test'
import { call, good, product, refused, skip, ways } from './api.mjs'

// awkward holds what one encoding or another gets wrong.
const awkward = ' 100% "a=b" & c+d; {} 门 @ é'
const device = { productID: product, deviceName: 'door-1' }
const get = { Action: 'GetDeviceShadow', ...device }
const update = (state, version = 0) => ({ Action: 'UpdateDeviceShadow', ...device, version, state: JSON.stringify(state) })
const publish = (payload, more = {}) => ({ Action: 'Publish', ...device, topic: `${product}/door-1/event`, payload, ...more })

for (const way of ways) {
  test(`the shadow of a device, ${way.name}`, { skip }, async () => {
    const direct = `node direct ${way.name}${awkward}`
    const { version } = (await good(way, get)).data.payload
    const { data } = await good(way, update({ desired: { direct } }, version))
    assert.deepEqual(
      { type: data.type, result: data.result, state: data.payload.state, version: data.payload.version },
      { type: 'update', result: 0, state: { desired: { direct } }, version: version + 1 },
    )
    assert.deepEqual(data.payload.metadata, { desired: { direct: { timestamp: data.payload.timestamp } } })
    const whole = (await good(way, get)).data
    assert.deepEqual([whole.type, whole.result, whole.payload.version], ['get', 0, version + 1])
    assert.equal(whole.payload.state.desired.direct, direct)
    assert.equal(whole.payload.state.delta.direct, direct)

    // Another version: what is stored comes with the error.
    const late = update({ desired: { direct: 'late' } }, version + 100)
    await refused(way, late, 5005)
    const told = (await call(way, late)).data
    assert.deepEqual([told.type, told.result, told.payload], ['update', 5005, whole.payload])
  })

  test(`a message to a device, ${way.name}`, { skip }, async () => {
    const answer = await call(way, publish(`node direct ${way.name}${awkward}`))
    assert.deepEqual(answer, { message: '', codeDesc: 'Success', code: 0 })
  })
}

test('clearing what is desired', { skip }, async () => {
  const { data } = await good(ways[0], update({ desired: null }))
  assert.deepEqual(data.payload.state, { desired: null })
  const { state } = (await good(ways[0], get)).data.payload
  assert.equal(state.desired, undefined)
  assert.equal(state.delta, undefined)
})

function without(data, name) {
  const rest = { ...data }
  delete rest[name]
  return rest
}

test('what is refused about devices', { skip }, async (t) => {
  for (const [what, want, data] of [
    ['no such device', 5102, { ...get, deviceName: 'nobody' }],
    ['no such product', 5102, { ...get, productID: 'NONE123456' }],
    ['no device', 5000, without(get, 'deviceName')],
    ['a name that no device can have', 5101, { ...get, deviceName: '../door' }],
    ['no state', 5000, without(update({}), 'state')],
    ['nothing desired', 5000, update({})],
    ['reported', 5003, update({ reported: { state: 'open' } })],
    ['too deep', 5002, update({ desired: { a: { b: { c: { d: { e: {} } } } } } })],
    ['no JSON', 5004, { ...update({}), state: 'open' }],
    ['too large', 5006, update({ desired: { a: 'x'.repeat(16385) } })],
    ['a topic of another device', 7000, publish('x', { topic: `${product}/door-2/event` })],
    ['a topic with a wildcard', 7000, publish('x', { topic: `${product}/door-1/#` })],
    ['no payload', 7101, without(publish('x'), 'payload')],
    ['a message to no device', 7102, publish('x', { deviceName: 'nobody', topic: `${product}/nobody/event` })],
  ]) {
    await t.test(what, async () => {
      // A GET of such a length reaches no server.
      const short = ways.filter((way) => way.method === 'POST' || JSON.stringify(data).length < 8000)
      for (const way of short) await refused(way, data, want)
    })
  }
  await t.test('a payload that is too long', () => refused(ways[0], publish('x'.repeat(16385)), 7002))
})

// The client does not sign in a POST what begins with "@".
test('a message that begins with @', { skip }, async () => {
  for (const way of ways) {
    if (way.method === 'POST') await refused(way, publish('@door'), 4100)
    else await good(way, publish('@direct'))
  }
})
