'use strict';

/**
 * stdout and stderr, written at once.
 *
 * Node's own streams on a pipe keep in memory what the pipe does not take, and lose it when the process exits. One
 * write for each print is what lets a log reach the client while the code goes on computing: there is one thread.
 */

const { Writable } = require('node:stream');
const { sizeOf, writeBytes, writeText } = require('./io.js');

class Log extends Writable {
  constructor(fd) {
    super({ decodeStrings: false });
    this.fd = fd;
    this._type = 'pipe';
    this._isStdio = true;
    this.destroySoon = this.destroy;
  }

  _write(chunk, encoding, done) {
    try {
      if (typeof chunk === 'string' && (encoding === 'utf8' || encoding === 'utf-8')) writeText(this.fd, chunk);
      else {
        const bytes = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk;
        writeBytes(this.fd, bytes, 0, sizeOf(bytes));
      }
    } catch (error) {
      // Nobody reads any more, or user code closed the descriptor: printing is no reason to fail.
      if (error.code !== 'EPIPE' && error.code !== 'EBADF') return done(error);
    }
    done();
  }

  _destroy(error, done) {
    done(error);
  }
}

/** Puts the two in the place of Node's own, before anything has touched those. */
exports.install = () => {
  for (const [name, fd] of [
    ['stdout', 1],
    ['stderr', 2],
  ]) {
    const log = new Log(fd);
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => log });
  }
};
