'use strict';

/**
 * Makes this process unlike the others that were restored from the same snapshot. `prepare` runs before the snapshot, `renew`
 * after each restore. Both random generators of Node are state that a snapshot repeats: V8's behind Math.random, which is
 * seeded at its first use (so nothing of ours may use it earlier), and OpenSSL's behind node:crypto and TLS.
 */

const crypto = require('node:crypto');
const fs = require('node:fs');
const v8 = require('node:v8');

const SEED_LIMIT = 0x7fffffff;
let poll = null;

/** Fresh bytes from the kernel, which OpenSSL's generator cannot give yet. */
const fromKernel = (count) => {
  const fd = fs.openSync('/dev/urandom', 'r');
  try {
    const bytes = Buffer.alloc(count);
    if (fs.readSync(fd, bytes, 0, count, null) !== count) throw new Error('/dev/urandom gave too little');
    return bytes;
  } finally {
    fs.closeSync(fd);
  }
};

/** Finds OpenSSL's function that mixes new randomness of the kernel in (RAND_poll(3ssl)); Node has no other way to it. */
exports.prepare = () => {
  const ffi = require('node:ffi');
  poll = ffi.dlopen(null, { RAND_poll: { arguments: [], return: 'i32' } }).functions.RAND_poll;
};

/** New randomness everywhere, and what the generators gave of it. Throws when that cannot be had: then nothing may run here. */
exports.renew = () => {
  if (poll() !== 1) throw new Error('RAND_poll failed');
  v8.setFlagsFromString(`--random-seed=${1 + (fromKernel(4).readUInt32LE(0) % SEED_LIMIT)}`);
  const words = Array.from({ length: 8 }, () => Math.floor(Math.random() * 2 ** 32));
  const drawn = words.map((word) => word.toString(16).padStart(8, '0')).join('');
  return [drawn, crypto.randomBytes(32).toString('hex')];
};
