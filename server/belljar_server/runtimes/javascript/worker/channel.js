'use strict';

/** The connection to the agent on fd 3; `guest/framing.py` describes it. Lives in the worker's own realm. */

const { bytesOf, identify, readBytes, writeBytes, writeText } = require('host');

const FD = 3;
const HEADER = 5;
const KINDS = { ready: 0x79, wake: 0x77, job: 0x6a, result: 0x72, report: 0x70 };
const PIECE = 256 * 1024;
const SEAL_BYTES = 16;

/** What this worker's report begins with, so that the agent knows it. */
let seal = null;
/** What FD leads to, as long as user code leaves it alone. */
let agent = '';

const getters = Object.getOwnPropertyDescriptors(Object.getPrototypeOf(Uint8Array.prototype));
const read = (array, name) => Reflect.apply(getters[name].get, array, []);

/** The same bytes as an array of this realm: the prototype of a Buffer is within reach of user code. */
const ours = (buffer) => new Uint8Array(read(buffer, 'buffer'), read(buffer, 'byteOffset'), read(buffer, 'length'));

const sendBytes = (kind, buffer) => {
  const bytes = ours(buffer);
  const frame = new Uint8Array(HEADER + bytes.length);
  frame[0] = kind;
  new DataView(frame.buffer).setUint32(1, bytes.length);
  frame.set(bytes, HEADER);
  writeBytes(FD, frame, 0, frame.length);
};

const sendText = (kind, text) => sendBytes(kind, bytesOf(text));

exports.sendReady = (versions) => {
  agent = identify(FD);
  sendText(KINDS.ready, JSON.stringify(versions));
};

/**
 * Waits for a job, as its JSON text, or for the word that this is a copy, when `job` is null. Gives null when the agent
 * is gone. Blocking, so that it waits through a checkpoint.
 */
exports.receive = () => {
  const header = readBytes(FD, HEADER);
  if (header === null) return null;
  const kind = header[0];
  if (kind !== KINDS.job && kind !== KINDS.wake) throw new Error(`expected a job, got a frame of kind ${kind}`);
  const payload = readBytes(FD, header.readUInt32BE(1));
  if (payload === null) return null;
  if (kind === KINDS.wake) return { job: null };
  seal = new Uint8Array(payload.subarray(0, SEAL_BYTES));
  return { job: payload.toString('utf8', SEAL_BYTES) };
};

/** Cuts well-formed text into pieces whose UTF-8 fits a frame, never inside a surrogate pair. */
exports.cut = (text) => {
  const pieces = [];
  for (let start = 0; start < text.length;) {
    let end = start + PIECE;
    if (end < text.length && (text.charCodeAt(end - 1) & 0xfc00) === 0xd800) end -= 1;
    pieces.push(bytesOf(text.slice(start, end)));
    start = end;
  }
  return pieces;
};

/**
 * Sends the result, when there is one, and the report, and waits for the agent to end this process. Throws when the
 * agent is gone, or user code has closed or replaced the descriptor.
 */
exports.sendOutcome = (pieces, report) => {
  if (identify(FD) !== agent) throw new Error('this is not the agent');
  for (const piece of pieces) sendBytes(KINDS.result, piece);
  const text = ours(bytesOf(JSON.stringify(report)));
  const sealed = new Uint8Array(SEAL_BYTES + text.length);
  sealed.set(seal);
  sealed.set(text, SEAL_BYTES);
  sendBytes(KINDS.report, sealed);
  readBytes(FD, 1);
};

/** Says in the logs why nothing came. */
exports.tellLost = () => {
  const why = `the code has closed the worker's channel (file descriptor ${FD})`;
  try {
    writeText(2, `belljar: the result could not be delivered: ${why}\n`);
  } catch {
    // Closed as well, or nobody reads.
  }
};
