'use strict';

/**
 * The JavaScript and TypeScript worker: warm up, say READY, wait for a job, run it, report, exit.
 *
 *     node worker.js javascript|typescript
 *
 * This file and user.js, leftover.js, logs.js, io.js share a realm with user code; everything that has to work after user code has
 * run is in a realm of its own, see realm.js. The three arguments that may follow are for tests: the folders that are
 * /home/user, /code and the node_modules of the parsers in an image.
 */

const { createRequire, SourceMap } = require('node:module');
const path = require('node:path');
const process = require('node:process');
const util = require('node:util');

const heap = require('./heap.js');
const io = require('./io.js');
const leftover = require('./leftover.js');
const logs = require('./logs.js');
const realm = require('./realm.js');
const unique = require('./unique.js');
const user = require('./user.js');

const [, , language, home = '/home/user', code = '/code', modules = '/opt/belljar/npm/node_modules'] = process.argv;
const requirePackage = createRequire(path.join(modules, 'worker.js'));

const SWC = `@swc/core-linux-${process.arch}-gnu`;
let swc = null;
const loadSwc = () => (swc ??= requirePackage(SWC));

const { emit, listenerCount } = process;
const { apply } = Reflect;
const reallyExit = process.reallyExit.bind(process);
const later = setImmediate;
const parseJson = JSON.parse;

/** What the worker's own realm may use of this one. */
const host = {
  __proto__: null,
  ...io,
  ...leftover,
  types: { __proto__: null, ...util.types },
  inspect: util.inspect,
  userObjectPrototype: Object.prototype,
  parserPath: requirePackage.resolve('@babel/parser'),
  workerFolder: `${__dirname}${path.sep}`,
  importerPath: user.importerPath(code),
  /** The call that the JavaScript of @swc/core makes; the second argument says that `text` is no syntax tree. */
  transform: (text, options) => loadSwc().transformSync(text, false, Buffer.from(options)),
  readSourceMap: (map) => {
    const sourceMap = new SourceMap(parseJson(map));
    return (line, column) => sourceMap.findEntry(line, column);
  },
  parseJson,
  runCode: user.runCode,
  settle: user.settle,
  nextTurn: (callback) => void later(() => callback()),
  reallyExit,
  emitExit: (exitCode) => {
    if (apply(listenerCount, process, ['exit']) === 0) return;
    process._exiting = true; // process.exit in a handler does not call the handlers again
    apply(emit, process, ['exit', exitCode]);
  },
  exitCode: () => process.exitCode,
  user,
};

const load = realm.open(host);
const inRealm = (name) => load(path.join(__dirname, name));
const { receive, sendReady } = inRealm('channel.js');
const { compileFile } = inRealm('compile.js');
const { Execution, warmUp } = inRealm('execution.js');
const { formatStack, rememberBadSource } = inRealm('failure.js');

const isTypeScript = language === 'typescript';
const ROUNDS_BEFORE_SNAPSHOT = 5;
/** What a job that does not tell its memory is taken to have: the default of the contract. */
const DEFAULT_MEMORY = 512 * 1024 * 1024;

/** What a request needs, loaded and run. Before a snapshot all of it: what it costs is paid once for many sandboxes. */
const prepare = async () => {
  const snapshot = process.env.BELLJAR_WARM === '1';
  const main = path.join(code, 'warm-up');
  if (snapshot) unique.prepare();
  if (isTypeScript || snapshot) loadSwc();
  heap.prepare();
  host.watchClosely = user.watch({
    failed: (error) => execution.fail(error),
    starved: () => execution.starve(),
    exited: (exitCode) => execution.exit(exitCode),
  });
  for (let round = 0; round < (snapshot ? ROUNDS_BEFORE_SNAPSHOT : 1); round += 1) {
    if (!isTypeScript || snapshot) await warmUp('javascript', main);
    if (isTypeScript || snapshot) await warmUp('typescript', main);
  }
};

const hasSources = () => {
  try {
    return require('node:fs').readdirSync(code).length > 0;
  } catch {
    return false;
  }
};

/** The one job, once it is there. */
let execution = null;

/** Runs it. What comes out of it goes to the agent, which then ends the process. */
const serve = (job) => {
  execution = new Execution(job, path.join(code, job.main_file), isTypeScript);
  if (hasSources()) user.serveSources(code, compileFile, rememberBadSource);
  heap.fit(job.memory_bytes ?? DEFAULT_MEMORY);
  user.dressProcess(home, job.main_file, job.env);
  execution.run();
};

logs.install();
user.formatStacksWith(formatStack);
const versions = {
  version: process.versions.node,
  ...(isTypeScript && { swc: requirePackage(`${SWC}/package.json`).version }),
};
prepare().then(async () => {
  sendReady(versions);
  for (let message = receive(); ; message = receive()) {
    if (message === null) reallyExit(0);
    if (message.job !== null) return serve(parseJson(message.job));
    const nonces = unique.renew();
    hasSources();
    heap.rehearse();
    await warmUp(language, path.join(code, 'warm-up'));
    sendReady({ ...versions, nonces });
  }
});
