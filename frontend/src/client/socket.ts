/**
 * The client of ragkit's socket: for the side panel, the widget and any web application.
 *
 *     const socket = connect({ url: 'http://localhost:8000/', token, onMessage: (message) => ... });
 *     const answer = await socket.ask('What is BM25?', { onDelta: (piece) => ... });
 *
 * Theory of operation: a connection can end at any time (a laptop sleeps, a proxy times out, a server restarts),
 * and the client reconnects with back-off and jitter. It keeps the epoch and seq of the last broadcast, and the
 * hub resumes from there, or sends a `gap` with a snapshot. A new client first requests a snapshot. So an
 * application that applies every message in order has the current state; no broadcast arrives twice. The client
 * sends its own pings to detect dead connections, because browsers hide WebSocket pings.
 */

import { type Place, type Problem, diagnose, socketUrl } from './addresses.js';
import type { ClientMessage, ErrorCode, ListenerMessage, ResponseContent, Since, Snapshot } from './messages.js';

export { type Problem, pageConfig, serverUrl } from './addresses.js';
export type * from './messages.js';

export interface ConnectionState {
  /** `waiting`: until `retryAt`; `closed`: permanently, by `close` or the signal. */
  readonly status: 'connecting' | 'open' | 'waiting' | 'closed';
  readonly problem?: Problem;
  /** In milliseconds since 1970. */
  readonly retryAt?: number;
}

export interface SocketOptions extends Place {
  /** Types of broadcasts to receive; default: all. */
  topics?: string[];
  /** Closes the socket when aborted. */
  signal?: AbortSignal;
  /** Called with every message: broadcasts, snapshots, replies. Exceptions are logged and do not close the socket. */
  onMessage?: (message: ListenerMessage) => void;
  onState?: (state: ConnectionState) => void;
  /** Whether to connect at once; if false, call `start`. */
  start?: boolean;
  /** Time between two pings. */
  heartbeatSeconds?: number;
  /** Time-out for the reply to a ping and for opening a connection. */
  timeoutSeconds?: number;
}

export interface AskOptions {
  /** `index` or `engine` selects the engine, `k` the number of passages. */
  context?: Record<string, unknown>;
  /** Called with each piece of the answer while it is generated; together they are a preview. */
  onDelta?: (piece: string) => void;
  /** Stops the engine; the promise is rejected with the code CANCELLED. */
  signal?: AbortSignal;
  id?: string;
}

/** A question failed; the message says what to do next. */
export class AskError extends Error {
  constructor(
    readonly code: ErrorCode | 'CONNECTION_LOST',
    message: string,
  ) {
    super(message);
    this.name = 'AskError';
  }
}

interface Asked {
  message: ClientMessage;
  sent: boolean;
  resolve: (content: ResponseContent) => void;
  reject: (error: AskError) => void;
  onDelta?: (piece: string) => void;
}

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;

/** Open the socket, and keep it connected until `close` or the signal closes it. */
export function connect(options: SocketOptions = {}): RagkitSocket {
  return new RagkitSocket(options);
}

export class RagkitSocket {
  /** The current state of the connection. */
  state: ConnectionState = { status: 'connecting' };
  /** The position of the last broadcast; null before the first snapshot. */
  since: Since | null = null;

  private socket: WebSocket | null = null;
  private attempts = 0;
  private heard = 0;
  private asked = new Map<string, Asked>();
  private timers = new Map<string, ReturnType<typeof setTimeout>>();
  private ended = new AbortController();
  private readonly heartbeat: number;
  private readonly timeout: number;

  constructor(private readonly options: SocketOptions) {
    this.heartbeat = 1000 * (options.heartbeatSeconds ?? 25);
    this.timeout = 1000 * (options.timeoutSeconds ?? 10);
    const { signal } = this.ended;
    options.signal?.addEventListener('abort', () => this.close(), { signal });
    globalThis.addEventListener?.('online', () => this.wake(), { signal });
    globalThis.addEventListener?.('pageshow', () => this.wake(), { signal });
    globalThis.document?.addEventListener('visibilitychange', () => !document.hidden && this.wake(), { signal });
    if (options.signal?.aborted) {
      this.close();
    } else if (options.start !== false) {
      this.open();
    }
  }

  /** Connect, if the constructor did not. */
  start(): void {
    if (this.state.status === 'connecting' && !this.socket) {
      this.open();
    }
  }

  /**
   * Ask the engine. While there is no connection, the question waits for one. When the connection that it was
   * sent on ends, it fails.
   *
   * Rejects with an `AskError`.
   */
  ask(question: string, { context = {}, onDelta, signal, id = newId() }: AskOptions = {}): Promise<ResponseContent> {
    return new Promise((resolve, reject) => {
      if (this.state.status === 'closed' || signal?.aborted) {
        reject(new AskError(signal?.aborted ? 'CANCELLED' : 'CONNECTION_LOST', 'It was stopped before it was sent.'));
        return;
      }
      if (this.asked.has(id)) {
        reject(new AskError('DUPLICATE_ID', `A question with the id '${id}' is still being answered.`));
        return;
      }
      const message: ClientMessage = { type: 'query', id, content: { question, context } };
      const settled = new AbortController();
      const asked: Asked = {
        message,
        onDelta,
        sent: this.send(message),
        resolve: (content) => (settled.abort(), resolve(content)),
        reject: (error) => (settled.abort(), reject(error)),
      };
      this.asked.set(id, asked);
      const stop = (): void => {
        if (!asked.sent || !this.send({ type: 'cancel', id })) {
          this.settle(id)?.reject(new AskError('CANCELLED', 'Stopped.'));
        } // else the hub replies with the error CANCELLED
      };
      signal?.addEventListener('abort', stop, { signal: settled.signal });
    });
  }

  /** Whether the connection is open. */
  get isOpen(): boolean {
    return this.socket?.readyState === 1;
  }

  /** Send a message; return false, without sending, if there is no connection. */
  send(message: ClientMessage): boolean {
    if (!this.isOpen) {
      return false;
    }
    this.socket!.send(JSON.stringify(message));
    return true;
  }

  /** Reconnect now, or check now whether the connection is still alive. */
  wake(): void {
    if (this.state.status === 'waiting') {
      this.open();
    } else if (this.state.status === 'open') {
      this.ping(Math.min(this.timeout, 5_000));
    }
  }

  /** Close the socket permanently. */
  close(): void {
    if (this.state.status !== 'closed') {
      this.ended.abort();
      this.drop();
      this.timers.forEach(clearTimeout);
      this.timers.clear();
      this.rejectSent('The connection was closed.', true);
      this.become({ status: 'closed' });
    }
  }

  // -------------------------------------------------------------------------------- connecting

  private open(): void {
    this.later('retry', 0, null);
    const { topics } = this.options;
    const socket = new WebSocket(socketUrl(this.options, this.since));
    this.socket = socket;
    let opened = false;
    this.later('open', this.timeout, () => this.lose(socket));
    socket.onopen = () => {
      opened = true;
      this.heard = performance.now();
      this.later('open', 0, null);
      if (topics || !this.since) {
        this.send({ type: 'subscribe', ...(topics && { topics }) });
      }
      for (const asked of this.asked.values()) {
        asked.sent ||= this.send(asked.message);
      }
      this.later('stable', 10_000, () => (this.attempts = 0));
      this.later('ping', this.heartbeat, () => this.ping(this.timeout));
      this.become({ status: 'open' });
    };
    socket.onmessage = ({ data }) => this.receive(data);
    socket.onclose = ({ code }) => this.lose(socket, !opened ? undefined : code === 1001 ? 'stopping' : 'lost');
    this.become({ status: 'connecting', problem: this.state.problem }); // last: the callback may close the socket
  }

  /** Drop the connection and schedule the next. Without a `problem` it never opened, and the cause is diagnosed. */
  private lose(socket: WebSocket, problem?: Problem): void {
    if (socket !== this.socket) {
      return;
    }
    this.drop();
    for (const name of ['open', 'stable', 'ping']) {
      this.later(name, 0, null);
    }
    this.rejectSent('The connection was lost before the answer came. Ask again.');
    // With jitter, or a thousand pages would reconnect to a restarted server at the same instant.
    const pause = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.attempts++) * (0.5 + Math.random() / 2);
    this.later('retry', pause, () => this.open());
    this.become({ status: 'waiting', problem: problem ?? this.state.problem, retryAt: Date.now() + pause });
    if (!problem) {
      const attempt = this.attempts;
      void diagnose(this.options, this.timeout).then((found) => {
        if (attempt !== this.attempts) {
          return; // the diagnosis of an earlier attempt
        }
        if (this.state.status === 'waiting' || this.state.status === 'connecting') {
          this.become({ ...this.state, problem: found });
        }
      });
    }
  }

  /** Discard the socket without waiting: a dead one can take minutes to fire `close`. */
  private drop(): void {
    const socket = this.socket;
    this.socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  /** Check whether the server still responds, now and at regular intervals. */
  private ping(timeout: number): void {
    const socket = this.socket;
    const asked = performance.now(); // monotonic: the system clock may be changed
    const again = (pause: number): void => this.later('ping', pause, () => this.ping(this.timeout));
    if (socket && this.heard + 1_000 < asked && this.send({ type: 'ping' })) {
      const check = (): void =>
        this.heard < asked ? this.lose(socket, 'silent') : again(Math.max(0, this.heartbeat - timeout));
      this.later('ping', timeout, check);
    } else {
      again(this.heartbeat);
    }
  }

  // --------------------------------------------------------------------------------- receiving

  private receive(data: unknown): void {
    this.heard = performance.now();
    let message: ListenerMessage;
    try {
      message = JSON.parse(String(data));
    } catch {
      return; // the hub sends only JSON, so this comes from a proxy
    }
    if (typeof message?.type !== 'string') {
      return;
    }
    if (this.isRepeat(message)) {
      return;
    }
    if ('epoch' in message && message.type !== 'snapshot' && !this.wants(message.type)) {
      return; // sent before the hub received our topics
    }
    const id = 'id' in message ? message.id : undefined;
    if (message.type === 'response_delta') {
      this.guard(() => this.asked.get(id!)?.onDelta?.(message.content.delta));
    } else if (message.type === 'response') {
      this.settle(id)?.resolve(message.content);
    } else if (message.type === 'error' && message.content.code !== 'UNKNOWN_REQUEST') {
      this.settle(id)?.reject(new AskError(message.content.code, message.content.message));
    } else if (message.type === 'ping') {
      this.send({ type: 'pong', ...(id !== undefined && { id }) });
    }
    this.guard(() => this.options.onMessage?.(message));
  }

  /** Record the position of a message; return whether the message was already received. */
  private isRepeat(message: ListenerMessage): boolean {
    const place: Since | Snapshot | null =
      message.type === 'gap' ? message.snapshot : 'seq' in message && message.seq !== undefined ? message : null;
    if (!place) {
      return false;
    }
    const isState = message.type === 'gap' || message.type === 'snapshot';
    if (!isState && this.since?.epoch === place.epoch && place.seq <= this.since.seq) {
      return true;
    }
    if (isState || this.since) {
      // Before the first snapshot there is no position to resume from: the state before it would be missing.
      this.since = { epoch: place.epoch, seq: place.seq };
    }
    return false;
  }

  private wants(type: string): boolean {
    return this.options.topics?.includes(type) ?? true;
  }

  private settle(id: string | undefined): Asked | undefined {
    const asked = id === undefined ? undefined : this.asked.get(id);
    this.asked.delete(id ?? '');
    return asked;
  }

  private rejectSent(reason: string, all = false): void {
    for (const [id, asked] of [...this.asked]) {
      if (asked.sent || all) {
        this.settle(id)?.reject(new AskError('CONNECTION_LOST', reason));
      }
    }
  }

  // ----------------------------------------------------------------------------------- helpers

  private become(state: ConnectionState): void {
    this.state = state;
    this.guard(() => this.options.onState?.(state));
  }

  private guard(call: () => void): void {
    try {
      call();
    } catch (error) {
      console.error('ragkit: a callback failed', error);
    }
  }

  /** Schedule an action, replacing the one scheduled under this name; null cancels it. */
  private later(name: string, milliseconds: number, what: (() => void) | null): void {
    clearTimeout(this.timers.get(name));
    this.timers.delete(name);
    if (what && this.state.status !== 'closed') {
      this.timers.set(name, setTimeout(what, milliseconds));
    }
  }
}

/** crypto.randomUUID is not available on pages over plain http. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
