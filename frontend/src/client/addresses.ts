/** Where the server is, and what is in the way to it. */

import type { Since } from './messages.js';

/** What is in the way of a connection. */
export type Problem =
  /** This machine has no network. */
  | 'offline'
  /** Nothing answers. */
  | 'unreachable'
  /** A server answers, without ragkit. */
  | 'no_ragkit'
  /** No token, a wrong one, a login that has run out, or no right to read; without a token also a wrong origin. */
  | 'not_authorized'
  /** HTTP works and the WebSocket does not: a proxy, or an origin that is not allowed. */
  | 'blocked'
  /** The connection was open and then said nothing. */
  | 'silent'
  /** The server said that it stops; it may come back. */
  | 'stopping'
  /** The connection ended. */
  | 'lost';

export interface Place {
  /** The Jupyter server, with its base URL; as http(s):// or ws(s)://. Default: the one that this page comes from. */
  url?: string;
  /** Sent in the address: pages cannot set headers on a WebSocket. A page with a login cookie needs none. */
  token?: string;
}

/** What Jupyter tells its own pages; nothing on any other page. */
export function pageConfig(): Record<string, string> {
  try {
    // A script: text of a notebook can bear any id, and must not say where questions go.
    return JSON.parse(globalThis.document?.querySelector('script#jupyter-config-data')?.textContent || '{}');
  } catch {
    return {};
  }
}

/** The Jupyter server's address as http(s)://, with its base URL and a slash at the end. */
export function serverUrl(url?: string): URL {
  const config = pageConfig();
  const found = new URL(url ?? (config.wsUrl || config.baseUrl || '/'), globalThis.location?.href);
  found.protocol = found.protocol.replace('ws', 'http');
  found.pathname = found.pathname.replace(/\/*(api\/v1\/ws\/*)?$/, '/');
  return found;
}

function address(options: Place, path: string): URL {
  const url = new URL(path, serverUrl(options.url));
  const config = pageConfig();
  // As JupyterLab does: its own server knows the page by its cookie, another host does not.
  const token = options.token ?? (options.url === undefined && url.host !== location.host ? config.token : '');
  if (token) {
    url.searchParams.set('token', token);
  }
  return url;
}

export function socketUrl(options: Place, since: Since | null): string {
  const url = address(options, 'api/v1/ws');
  url.protocol = url.protocol.replace('http', 'ws');
  if (since) {
    url.searchParams.set('epoch', since.epoch);
    url.searchParams.set('seq', String(since.seq));
  }
  return url.href;
}

/** Find out what is in the way: a browser does not tell why a WebSocket did not open. */
export async function diagnose(options: Place, timeout: number): Promise<Problem> {
  const isHere = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(serverUrl(options.url).hostname);
  if (globalThis.navigator?.onLine === false && !isHere) {
    return 'offline';
  }
  const get = (path: string, credentials: RequestCredentials): Promise<Response> =>
    fetch(address(options, path), {
      credentials,
      redirect: 'manual', // to the login page
      signal: AbortSignal.timeout(timeout),
    });
  const hasToken = address(options, '').searchParams.has('token');
  try {
    // With cookies a page of another origin would not see the answer, unless the server allows that separately.
    const answer = await get('api/v1/status', hasToken ? 'same-origin' : 'include');
    if (answer.status === 404) {
      return 'no_ragkit';
    }
    if (answer.status === 401 || answer.status === 403 || answer.type === 'opaqueredirect') {
      return 'not_authorized';
    }
    return answer.ok ? 'blocked' : 'unreachable';
  } catch {
    // Jupyter hides a refusal from pages of another origin; but this code here is for everybody to see.
    const open = new URL('api/v1/socket.js', serverUrl(options.url));
    const code = await fetch(open, { signal: AbortSignal.timeout(timeout) }).catch(() => null);
    return code?.ok ? 'not_authorized' : 'unreachable';
  }
}
