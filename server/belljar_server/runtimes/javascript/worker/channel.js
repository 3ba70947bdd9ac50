'use strict';

/** The connection to the agent on fd 3; `guest/framing.py` describes it. Lives in the worker's own realm. */

const { readBytes, writeBytes, bytesOf } = require('host');

const FD = 3;
const HEADER = 5;
const KINDS = { ready: 0x79, job: 0x6a, result: 0x72, report: 0x70 };
const PIECE = 256 * 1024;

const sendBytes = (kind, bytes, length) => {
  const header = new Uint8Array(HEADER);
  header[0] = kind;
  new DataView(header.buffer).setUint32(1, length);
  writeBytes(FD, header, 0, HEADER);
  writeBytes(FD, bytes, 0, length);
};

const sendText = (kind, text) => {
  const bytes = bytesOf(text);
  sendBytes(kind, bytes, bytes.byteLength);
};

exports.sendReady = (versions) => sendText(KINDS.ready, JSON.stringify(versions));

/** Waits for the job as its JSON text; null when the agent is gone. Blocking, so that it waits through a checkpoint. */
exports.receiveJob = () => {
  const header = readBytes(FD, HEADER);
  if (header === null) return null;
  if (header[0] !== KINDS.job) throw new Error(`expected a job, got a frame of kind ${header[0]}`);
  const payload = readBytes(FD, header.readUInt32BE(1));
  return payload === null ? null : payload.toString('utf8');
};

/** Cuts well-formed text into pieces whose UTF-8 fits a frame, never inside a surrogate pair. */
exports.cut = (text) => {
  const pieces = [];
  for (let start = 0; start < text.length; ) {
    let end = start + PIECE;
    if (end < text.length && (text.charCodeAt(end - 1) & 0xfc00) === 0xd800) end -= 1;
    pieces.push(bytesOf(text.slice(start, end)));
    start = end;
  }
  return pieces;
};

/** Sends the result, when there is one, and the report. */
exports.sendOutcome = (pieces, report) => {
  for (const piece of pieces) sendBytes(KINDS.result, piece, piece.byteLength);
  sendText(KINDS.report, JSON.stringify(report));
};
