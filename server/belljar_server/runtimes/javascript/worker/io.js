'use strict';

/**
 * Reads and writes that finish what they begin: on blocking and on non-blocking descriptors, whatever user code
 * patches.
 */

const { Buffer } = require('node:buffer');
const { fstatSync, readSync, writeSync } = require('node:fs');

const allocate = Buffer.allocUnsafe;
// Not Buffer.from, which asks prototypes that user code may have changed.
const { encode } = TextEncoder.prototype;
const encoder = new TextEncoder();
const byteLengthOf = Buffer.byteLength;
const wait = Atomics.wait;
const { apply } = Reflect;
const sizeGetter = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'byteLength').get;
const nobody = new Int32Array(new SharedArrayBuffer(4));

/** Bytes of a typed array, whatever its prototype says by now. */
const sizeOf = (array) => apply(sizeGetter, array, []);

/** A text as UTF-8. */
const bytesOf = (text) => apply(encode, encoder, [text]);

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
const writeBytes = (fd, buffer, offset, length) => {
  let done = 0;
  while (done < length) done += persist(writeSync, fd, buffer, offset + done, length - done);
};

/** Writes a text as UTF-8. */
const writeText = (fd, text) => {
  const buffer = bytesOf(text);
  writeBytes(fd, buffer, 0, sizeOf(buffer));
};

/** The next `length` bytes, or null when the other end is gone. */
const readBytes = (fd, length) => {
  const buffer = allocate(length);
  for (let done = 0; done < length;) {
    const got = persist(readSync, fd, buffer, done, length - done);
    if (got === 0) return null;
    done += got;
  }
  return buffer;
};

/** What a descriptor leads to, as text: another text, another file. Throws EBADF. */
const identify = (fd) => {
  const { dev, ino } = fstatSync(fd);
  return `${dev}:${ino}`;
};

module.exports = {
  byteLengthOf: (text) => byteLengthOf(text, 'utf8'),
  bytesOf,
  identify,
  readBytes,
  sizeOf,
  writeBytes,
  writeText,
};
