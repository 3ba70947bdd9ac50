'use strict';

/** What user code has begun and not waited for. Node's own functions, taken before user code can replace them. */

const process = require('node:process');

const { apply } = Reflect;
const { setTimeout, clearTimeout, performance } = globalThis;
const { getActiveResourcesInfo } = process;
const { now } = performance;
const idle = setTimeout(() => {}, 0);
const { unref } = Object.getPrototypeOf(idle);
clearTimeout(idle);

/** Milliseconds of a clock that is never set. */
exports.clock = () => apply(now, performance, []);

/** Calls back after so many milliseconds, if anything else keeps the process going for that long. */
exports.whileAlive = (milliseconds, callback) => {
  const timer = setTimeout(() => callback(), milliseconds);
  apply(unref, timer, []);
  return () => clearTimeout(timer);
};

/** What keeps the process going, in Node's words: `Timeout`, `TCPSocketWrap`. It does not know zlib's and crypto's work. */
exports.underWay = () => apply(getActiveResourcesInfo, process, []);
