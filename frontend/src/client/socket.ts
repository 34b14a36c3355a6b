/**
 * The client of ragkit's socket: for the side panel, the widget and any web application.
 *
 *     const socket = connect({ url: 'http://localhost:8000/', token, onMessage: (message) => ... });
 *     const answer = await socket.ask('What is BM25?', { onDelta: (piece) => ... });
 *
 * Theory of operation: a connection ends whenever it likes (a laptop sleeps, a proxy cuts, a server restarts)
 * and the client makes another, after pauses that grow and vary. It knows how far it has come, as the epoch and
 * seq of the last broadcast, and the hub goes on from there, or sends a `gap` with a snapshot. A new client asks
 * for a snapshot first. So whoever applies every message in order has the true state; no broadcast arrives twice.
 * A connection that only looks alive is found by a ping of our own: browsers hide the protocol's.
 */

import { type Place, type Problem, diagnose, socketUrl } from './addresses.js';
import type { ClientMessage, ErrorCode, ListenerMessage, ResponseContent, Since, Snapshot } from './messages.js';

export { type Problem, pageConfig, serverUrl } from './addresses.js';
export type * from './messages.js';

export interface ConnectionState {
  /** `waiting`: until `retryAt`; `closed`: for good, by `close` or the signal. */
  readonly status: 'connecting' | 'open' | 'waiting' | 'closed';
  readonly problem?: Problem;
  /** In milliseconds since 1970. */
  readonly retryAt?: number;
}

export interface SocketOptions extends Place {
  /** Types of broadcasts to get; all without it. */
  topics?: string[];
  /** Ends everything when it is aborted. */
  signal?: AbortSignal;
  /** Gets every message: broadcasts, snapshots, replies. What it throws is reported and ends nothing. */
  onMessage?: (message: ListenerMessage) => void;
  onState?: (state: ConnectionState) => void;
  /** Whether to connect at once; if not, `start` does. */
  start?: boolean;
  /** Between two pings. */
  heartbeatSeconds?: number;
  /** How long an answer to a ping, or an opening, may take. */
  timeoutSeconds?: number;
}

export interface AskOptions {
  /** `index` or `engine` chooses who answers, `k` how many passages. */
  context?: Record<string, unknown>;
  /** Gets each piece of the answer as it is made; together they are a preview. */
  onDelta?: (piece: string) => void;
  /** Stops the engine; the promise is rejected with the code CANCELLED. */
  signal?: AbortSignal;
  id?: string;
}

/** A question that got no answer; the message says what to do next. */
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

/** Open the socket, and keep it open until the signal or `close` ends it. */
export function connect(options: SocketOptions = {}): RagkitSocket {
  return new RagkitSocket(options);
}

export class RagkitSocket {
  /** How it stands now. */
  state: ConnectionState = { status: 'connecting' };
  /** The last broadcast that has come, once a snapshot has. */
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

  /** Connect, if that was not done at once. */
  start(): void {
    if (this.state.status === 'connecting' && !this.socket) {
      this.open();
    }
  }

  /**
   * Ask the engine. While there is no connection the question waits for one; it does not outlive the one that
   * it was sent on.
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
        } // else the hub says so
      };
      signal?.addEventListener('abort', stop, { signal: settled.signal });
    });
  }

  /** Whether there is a connection now. */
  get isOpen(): boolean {
    return this.socket?.readyState === 1;
  }

  /** Send a message; false, and nothing is sent, if there is no connection now. */
  send(message: ClientMessage): boolean {
    if (!this.isOpen) {
      return false;
    }
    this.socket!.send(JSON.stringify(message));
    return true;
  }

  /** Try again now, or find out now whether the connection still lives. */
  wake(): void {
    if (this.state.status === 'waiting') {
      this.open();
    } else if (this.state.status === 'open') {
      this.ping(Math.min(this.timeout, 5_000));
    }
  }

  /** End it for good. */
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
    this.become({ status: 'connecting', problem: this.state.problem }); // last: whoever hears it may end it
  }

  /** Give up a connection and plan the next; without a problem it never opened, and why has to be found out. */
  private lose(socket: WebSocket, problem?: Problem): void {
    if (socket !== this.socket) {
      return;
    }
    this.drop();
    for (const name of ['open', 'stable', 'ping']) {
      this.later(name, 0, null);
    }
    this.rejectSent('The connection was lost before the answer came. Ask again.');
    // Half of it by chance, or a thousand pages would come back to a restarted server in the same instant.
    const pause = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.attempts++) * (0.5 + Math.random() / 2);
    this.later('retry', pause, () => this.open());
    this.become({ status: 'waiting', problem: problem ?? this.state.problem, retryAt: Date.now() + pause });
    if (!problem) {
      const attempt = this.attempts;
      void diagnose(this.options, this.timeout).then((found) => {
        if (attempt !== this.attempts) {
          return; // of an earlier attempt
        }
        if (this.state.status === 'waiting' || this.state.status === 'connecting') {
          this.become({ ...this.state, problem: found });
        }
      });
    }
  }

  /** Let go of the socket at once: a dead one can take minutes to say that it is closed. */
  private drop(): void {
    const socket = this.socket;
    this.socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  /** Find out whether the other end still answers, now and then again. */
  private ping(timeout: number): void {
    const socket = this.socket;
    const asked = performance.now(); // the clock of the day may be set
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
      return; // the hub sends JSON; what does not is something in between
    }
    if (typeof message?.type !== 'string') {
      return;
    }
    if (this.isRepeat(message)) {
      return;
    }
    if ('epoch' in message && message.type !== 'snapshot' && !this.wants(message.type)) {
      return; // on its way before the hub knew what we want
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

  /** Note how far we are; return whether we have been there. */
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
      // Before the first snapshot there is no place to come back to: what was before it would be missing.
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

  /** Do something later, in place of what was to be done under this name; null: nothing. */
  private later(name: string, milliseconds: number, what: (() => void) | null): void {
    clearTimeout(this.timers.get(name));
    this.timers.delete(name);
    if (what && this.state.status !== 'closed') {
      this.timers.set(name, setTimeout(what, milliseconds));
    }
  }
}

/** Not crypto.randomUUID: a page on plain http has none. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
