/** Addresses of the server, and diagnosis of connection problems. */

import type { Since } from './messages.js';

/** Why there is no connection. */
export type Problem =
  /** This machine has no network. */
  | 'offline'
  /** No server responds. */
  | 'unreachable'
  /** A server without ragkit responds. */
  | 'no_ragkit'
  /** No token, a wrong token, an expired login, or no permission to read; without a token also a wrong origin. */
  | 'not_authorized'
  /** HTTP works but the WebSocket does not: a proxy, or an origin that is not allowed. */
  | 'blocked'
  /** An open connection stopped responding. */
  | 'silent'
  /** The server announced that it is shutting down; it may restart. */
  | 'stopping'
  /** The connection ended. */
  | 'lost';

export interface Place {
  /** The Jupyter server, with its base URL; as http(s):// or ws(s)://. Default: the server of this page. */
  url?: string;
  /** Sent in the URL, because pages cannot set headers on a WebSocket. A page with a login cookie needs none. */
  token?: string;
}

/** The configuration that Jupyter puts into its own pages; empty on any other page. */
export function pageConfig(): Record<string, string> {
  try {
    // Only a script element: text of a notebook can have any id, and must not decide where questions are sent.
    return JSON.parse(globalThis.document?.querySelector('script#jupyter-config-data')?.textContent || '{}');
  } catch {
    return {};
  }
}

/** The Jupyter server's address as http(s)://, with its base URL and a trailing slash. */
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
  // As in JupyterLab: its own server authenticates the page by cookie, another host needs the token.
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

/** Find out why a WebSocket did not open, which the browser does not reveal. */
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
    // With cookies, a page of another origin could not read the reply unless the server allows credentials.
    const answer = await get('api/v1/status', hasToken ? 'same-origin' : 'include');
    if (answer.status === 404) {
      return 'no_ragkit';
    }
    if (answer.status === 401 || answer.status === 403 || answer.type === 'opaqueredirect') {
      return 'not_authorized';
    }
    return answer.ok ? 'blocked' : 'unreachable';
  } catch {
    // Jupyter hides a refusal from pages of another origin, but socket.js is readable from every origin.
    const open = new URL('api/v1/socket.js', serverUrl(options.url));
    const code = await fetch(open, { signal: AbortSignal.timeout(timeout) }).catch(() => null);
    return code?.ok ? 'not_authorized' : 'unreachable';
  }
}
