'use strict';

/** Reads and writes that finish what they begin: on blocking and on non-blocking descriptors, whatever user code patches. */

const { Buffer } = require('node:buffer');
const { readSync, writeSync } = require('node:fs');

const allocate = Buffer.allocUnsafe;
const bytesOf = Buffer.from;
const byteLengthOf = Buffer.byteLength;
const wait = Atomics.wait;
const nobody = new Int32Array(new SharedArrayBuffer(4));

/** Calls again when the descriptor is not ready or a signal came in between. */
const persist = (call, fd, buffer, offset, length) => {
  for (;;) {
    try {
      return call(fd, buffer, offset, length, null);
    } catch (error) {
      if (error.code !== 'EAGAIN' && error.code !== 'EINTR') throw error;
      if (error.code === 'EAGAIN') wait(nobody, 0, 0, 1);
    }
  }
};

/** Writes `length` bytes. Throws what the system says, EPIPE for example. */
exports.writeBytes = (fd, buffer, offset, length) => {
  let done = 0;
  while (done < length) done += persist(writeSync, fd, buffer, offset + done, length - done);
};

/** Writes a text as UTF-8. */
exports.writeText = (fd, text) => {
  const buffer = bytesOf(text, 'utf8');
  exports.writeBytes(fd, buffer, 0, buffer.byteLength);
};

/** The next `length` bytes, or null when the other end is gone. */
exports.readBytes = (fd, length) => {
  const buffer = allocate(length);
  for (let done = 0; done < length; ) {
    const got = persist(readSync, fd, buffer, done, length - done);
    if (got === 0) return null;
    done += got;
  }
  return buffer;
};

exports.bytesOf = (text) => bytesOf(text, 'utf8');
exports.byteLengthOf = (text) => byteLengthOf(text, 'utf8');
