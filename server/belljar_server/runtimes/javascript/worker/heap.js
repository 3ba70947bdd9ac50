'use strict';

/**
 * Makes V8's heap fit a sandbox whose memory is known only when the job comes.
 *
 * With V8's limit far above the sandbox's, garbage piles up until the kernel kills a program that needs a third of its
 * memory. With a fixed limit below it, V8 aborts, which looks like a crash and wastes what a larger sandbox has. So: a
 * limit that V8 collects garbage for, and that gives way when what is left after that really is needed; from there on
 * the kernel decides. The limit can be set later only through V8's C++ interface, which Node exports for add-ons:
 * removing a near-heap-limit callback sets the limit, and the callback that stays is asked for a new one when the limit
 * is reached. It must be native; labs() of the C library gives back its first argument, and that is the limit of our
 * choice.
 */

const { dlopen } = require('node:ffi');

const UNBOUNDED = 1n << 36n;
const MIB = 1024 * 1024;
/** For the program text, young objects, buffers, the agent. */
const BESIDE_THE_HEAP = 160 * MIB;

const GET_ISOLATE = '_ZN2v87Isolate10GetCurrentEv';
const ADD_CALLBACK = '_ZN2v87Isolate24AddNearHeapLimitCallbackEPFmPvmmES1_';
const REMOVE_CALLBACK = '_ZN2v87Isolate27RemoveNearHeapLimitCallbackEPFmPvmmEm';

const { lib, functions } = dlopen(null, {
  [GET_ISOLATE]: { arguments: [], return: 'pointer' },
  [ADD_CALLBACK]: { arguments: ['pointer', 'pointer', 'pointer'], return: 'void' },
  [REMOVE_CALLBACK]: { arguments: ['pointer', 'pointer', 'u64'], return: 'void' },
});
const raiseLimit = lib.getSymbol('labs');

const setLimit = (isolate, limit) => {
  functions[REMOVE_CALLBACK](isolate, raiseLimit, limit);
  functions[ADD_CALLBACK](isolate, raiseLimit, UNBOUNDED);
};

/** Puts the callback in place and changes no limit. */
exports.prepare = () => {
  const isolate = functions[GET_ISOLATE]();
  functions[ADD_CALLBACK](isolate, raiseLimit, UNBOUNDED);
  setLimit(isolate, UNBOUNDED);
};

/** Sets the limit for a sandbox of so many bytes, after `prepare`. V8 only ever lowers it. */
exports.fit = (memoryBytes) => {
  const limit = Math.max(memoryBytes / 2, memoryBytes - BESIDE_THE_HEAP);
  setLimit(functions[GET_ISOLATE](), BigInt(Math.floor(limit)));
};

/** What `fit` does, without any effect. */
exports.rehearse = () => setLimit(functions[GET_ISOLATE](), UNBOUNDED);
