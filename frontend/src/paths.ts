/** Maps a file's path on its machine to its path in the server's tree. */

import { pageConfig } from './client/addresses.js';

/** The file of a source; the source of a table row is FILE.jsonl#ROW. */
export function fileOf(source: string): string {
  return source.replace(/(\.jsonl)#.*$/is, '$1');
}

/** The path relative to the server's root, as in Jupyter's contents API; null if the file is outside. */
export function serverPath(path: string | undefined): string | null {
  const root = slashes(pageConfig().ragkitRoot ?? '').replace(/\/+$/, '');
  const file = slashes(path ?? '');
  if (!pageConfig().ragkitRoot || !file.startsWith(`${root}/`)) {
    return null;
  }
  const parts = file.slice(root.length + 1).split('/');
  return parts.includes('..') || parts.includes('') ? null : parts.join('/');
}

function slashes(path: string): string {
  return /^[A-Za-z]:\\/.test(path) ? path.replaceAll('\\', '/') : path;
}
