/** Build the parts outside JupyterLab: the widget, and the client as a module for any web application. */
import { copyFileSync, mkdirSync } from 'node:fs';
import { build } from 'esbuild';

const SERVER = '../server_extension/ragkit_server';
const LOCALE = `${SERVER}/locale/fr_FR/LC_MESSAGES`;

const options = { bundle: true, format: 'esm', minify: true, target: 'es2022', logLevel: 'warning', charset: 'utf8' };
await build({ ...options, entryPoints: ['src/widget.ts'], outfile: '../ragkit/static/widget.js' });
await build({ ...options, entryPoints: ['style/live.css'], outfile: '../ragkit/static/widget.css' });
await build({ ...options, entryPoints: ['src/client/socket.ts'], outfile: `${SERVER}/static/socket.js` });
mkdirSync(LOCALE, { recursive: true });
copyFileSync('src/locale/fr_FR.json', `${LOCALE}/ragkit.json`);
