'use strict';
/**
 * Runs once while the image is built: puts the real addon of swc where the package has a packed one.
 *
 * The packed one unpacks itself into a cache of the user whenever it is loaded. In a sandbox that would be 30 MB and 200 ms for
 * each execution, and files of ours among the user's.
 */
const fs = require('node:fs');
const path = require('node:path');

const PACKAGES = '/opt/belljar/npm/node_modules/@swc';
const CACHE = '/tmp/swc';

process.env.SWC_NATIVE_BINDING_CACHE = CACHE;
for (const name of fs.readdirSync(PACKAGES)) {
  const packed = require.resolve(path.join(PACKAGES, name));
  require(packed);
  const [unpacked] = fs.readdirSync(CACHE, { recursive: true }).filter((file) => file.endsWith('.node'));
  // Beside it, then in its place: the packed one is mapped into this process.
  fs.copyFileSync(path.join(CACHE, unpacked), `${packed}.new`);
  fs.renameSync(`${packed}.new`, packed);
  fs.rmSync(CACHE, { recursive: true });
}
