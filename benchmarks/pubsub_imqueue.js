// @imqueue/pg-pubsub behind a pipe: one command as JSON on each line of stdin, one answer on each line of stdout.
//
// What may live here: the counterpart of ImqueuePublisher and ImqueueListener in pubsub_brokers.py, and nothing else.

'use strict';

const DIGITS = 12;
const STAMP = 20;
const say = (answer) => process.stdout.write(JSON.stringify(answer) + '\n');

let PgPubSub;
try {
  ({ PgPubSub } = require('@imqueue/pg-pubsub'));
} catch (error) {
  say({ missing: error.message.split('\n')[0] });
  process.exit(0);
}

const quiet = { log() {}, info() {}, warn() {}, error() {} };
let pubsub;
let used = 0;
let heard = new Map();

const make = (size, same) => {
  const padding = 'x'.repeat(size - DIGITS - 2); // the two quotes that JSON adds count
  return (number) => String(same ? 0 : number).padStart(DIGITS, '0') + padding;
};

const verbs = {
  async open({ options }) {
    pubsub = new PgPubSub({ ...options, singleListener: false, retryLimit: 3 }, quiet);
    await pubsub.connect();
    return true;
  },

  async window({ channel, tasks, seconds, cycles, size, same }) {
    const payload = make(size, same);
    const begun = performance.now();
    let done = 0;
    const task = async (share) => {
      while (seconds === null ? share-- > 0 : performance.now() - begun < seconds * 1000) {
        await pubsub.notify(channel, payload(used++));
        done++;
      }
    };
    const shares = Array.from({ length: tasks }, (_, n) => Math.floor((cycles ?? 0) / tasks) + (n < (cycles ?? 0) % tasks));
    await Promise.all(shares.map(task));
    return { cycles: done, seconds: (performance.now() - begun) / 1000 };
  },

  async listen({ channels, timed }) {
    for (const channel of channels) {
      const messages = [];
      heard.set(channel, messages);
      pubsub.channels.on(channel, timed
        ? (payload) => messages.push([payload, process.hrtime.bigint()])
        : (payload) => messages.push(payload));
      await pubsub.listen(channel);
    }
    return channels.length;
  },

  async collect({ expected, patience, since, quietness, look, timed }) {
    const all = [...heard.values()];
    const clock = () => Number(process.hrtime.bigint()) / 1e6; // the clock of the other side, in milliseconds
    const begun = clock();
    let first = begun, last = begun, atFirst = 0, arrived = 0;
    for (;;) {
      const now = clock();
      const count = all.reduce((sum, messages) => sum + messages.length, 0);
      if (count !== arrived) {
        if (!arrived) { first = now; atFirst = count; }
        arrived = count;
        last = now;
      }
      if (count >= expected || now - begun > patience * 1000 || (arrived && now - last > quietness * 1000)) break;
      await new Promise((resolve) => setTimeout(resolve, look * 1000));
    }
    let distinct = 0;
    const latencies = [];
    for (const messages of all) {
      distinct += new Set(messages.map((m) => (timed ? m[0] : m).slice(0, DIGITS))).size;
      if (timed) for (const [payload, at] of messages) latencies.push(Number(at - BigInt(payload.slice(DIGITS, DIGITS + STAMP))));
      messages.length = 0;
    }
    if (since !== null) { first = since * 1000; atFirst = 0; }
    return { received: arrived, distinct, counted: arrived - atFirst, seconds: (last - first) / 1000, latencies };
  },

  async close() {
    await pubsub.destroy();
    return true;
  },
};

require('readline').createInterface({ input: process.stdin }).on('line', async (line) => {
  const { verb, ...words } = JSON.parse(line);
  try {
    say({ value: await verbs[verb](words) });
  } catch (error) {
    say({ error: String(error.message ?? error) });
  }
  if (verb === 'close') process.exit(0);
}).on('close', () => process.exit(0));
