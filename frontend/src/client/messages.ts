// Generated from ragkit/live/messages.py by messages.py (`make frontend`). Do not edit.

export type ClientMessage =
  | Query
  | Subscribe
  | Cancel
  | Ping
  | Pong;

export type ListenerMessage =
  | FollowUpQuestions
  | IndexingProgress
  | ExperimentProgress
  | ExperimentResult
  | EnginesChanged
  | Response
  | ResponseDelta
  | Error
  | Snapshot
  | Gap
  | Ping
  | Pong;

export type Broadcast =
  | FollowUpQuestions
  | IndexingProgress
  | ExperimentProgress
  | ExperimentResult
  | EnginesChanged;

export type ErrorCode =
  | 'INVALID_JSON'
  | 'INVALID_MESSAGE'
  | 'UNKNOWN_TYPE'
  | 'MESSAGE_TOO_BIG'
  | 'EMPTY_QUESTION'
  | 'NOT_AUTHORIZED'
  | 'NO_ENGINE'
  | 'ENGINE_FAILED'
  | 'ENGINE_LOST'
  | 'TIMEOUT'
  | 'CANCELLED'
  | 'RATE_LIMITED'
  | 'DUPLICATE_ID'
  | 'UNKNOWN_REQUEST';

/** Stop the query with this `id`; its asker gets the error CANCELLED. */
export interface Cancel {
  type: 'cancel';
  id: string;
}

export interface DeltaContent {
  delta: string;
}

/** An engine on offer. */
export interface Engine {
  id: string;
  index: string;
  llm: string;
  embedder: string;
  documents: number;
  origin?: Origin;
}

/** The engines that answer queries now, newest first. */
export interface EnginesChanged {
  type: 'engines';
  /** Names the hub's history; another one means that counting began anew. */
  epoch: string;
  /** 1, 2, 3, ... within an epoch; both are the hub's to give. */
  seq: number;
  /** RFC 3339: when it was published; a batch run's journal may arrive days later. */
  time: string;
  /** Who published; the hub's own `engines` has none. */
  origin?: Origin;
  engines: Engine[];
}

/** What went wrong and what to do next, to the asker alone. */
export interface Error {
  type: 'error';
  content: ErrorContent;
  id?: string;
}

export interface ErrorContent {
  message: string;
  code: ErrorCode;
}

/** One experiment's state; only the newest per `task_id` matters. */
export interface ExperimentProgress {
  type: 'experiment_progress';
  /** Names the hub's history; another one means that counting began anew. */
  epoch: string;
  /** 1, 2, 3, ... within an epoch; both are the hub's to give. */
  seq: number;
  /** RFC 3339: when it was published; a batch run's journal may arrive days later. */
  time: string;
  /** Who published; the hub's own `engines` has none. */
  origin?: Origin;
  task_id: string;
  experiment: string;
  state: 'cancelled' | 'done' | 'failed' | 'queued' | 'running';
  /** A cell is what is computed once, such as the ranking of one question by one system. */
  cells_done: number;
  cells_total: number | null;
  eta_seconds: number | null;
  message: string | null;
}

/** The row just measured, and the leaderboard so far. */
export interface ExperimentResult {
  type: 'experiment_result';
  /** Names the hub's history; another one means that counting began anew. */
  epoch: string;
  /** 1, 2, 3, ... within an epoch; both are the hub's to give. */
  seq: number;
  /** RFC 3339: when it was published; a batch run's journal may arrive days later. */
  time: string;
  /** Who published; the hub's own `engines` has none. */
  origin?: Origin;
  task_id: string;
  experiment: string;
  row: Record<string, unknown>;
  leaderboard: Record<string, unknown>[];
}

/** One document that could not be read, and why. */
export interface Failure {
  source: string;
  reason: string;
}

/** Questions that a reader of the last answer might ask next; each has an answer in the corpus. */
export interface FollowUpQuestions {
  type: 'follow_up_questions';
  /** Names the hub's history; another one means that counting began anew. */
  epoch: string;
  /** 1, 2, 3, ... within an epoch; both are the hub's to give. */
  seq: number;
  /** RFC 3339: when it was published; a batch run's journal may arrive days later. */
  time: string;
  /** Who published; the hub's own `engines` has none. */
  origin?: Origin;
  questions: string[];
  index?: string;
  /** The question whose answer these follow. */
  question?: string;
  /** The `id` of that answer's query; for an `engine.ask()` in a notebook `answer.id`. */
  request_id?: string;
}

/** Events up to `snapshot.seq` were dropped for this listener; the snapshot replaces them. */
export interface Gap {
  type: 'gap';
  snapshot: Snapshot;
  id?: string;
}

/** One indexing task's state; only the newest per `task_id` matters. */
export interface IndexingProgress {
  type: 'indexing_progress';
  /** Names the hub's history; another one means that counting began anew. */
  epoch: string;
  /** 1, 2, 3, ... within an epoch; both are the hub's to give. */
  seq: number;
  /** RFC 3339: when it was published; a batch run's journal may arrive days later. */
  time: string;
  /** Who published; the hub's own `engines` has none. */
  origin?: Origin;
  task_id: string;
  index: string;
  state: 'cancelled' | 'done' | 'failed' | 'queued' | 'running';
  documents_done: number;
  documents_total: number | null;
  chunks_done: number;
  chunks_total: number | null;
  current_document: string | null;
  /** Chunks a second, over the last few seconds. */
  rate: number | null;
  eta_seconds: number | null;
  /** The documents that failed so far; the first 100 of them. */
  failures: Failure[];
  failures_total: number;
  /** Why the task ended, when it failed or was cancelled. */
  message: string | null;
}

/** Who published: what kind of program, its name, and this run of it. */
export interface Origin {
  kind: 'cli' | 'notebook' | 'papermill' | 'script';
  name: string;
  run_id: string;
  /** The notebook's or script's file, absolute, as its own machine names it; absent where that is not known. */
  path?: string;
}

/** An application heartbeat: browsers expose no protocol ping. */
export interface Ping {
  type: 'ping';
  id?: string;
}

/** The answer to `Ping`, with its `id`. */
export interface Pong {
  type: 'pong';
  id?: string;
}

/** Ask the engine. */
export interface Query {
  type: 'query';
  content: QueryContent;
  /** Every reply carries it; without one the hub makes one. */
  id?: string;
}

/** A question, and what goes with it. */
export interface QueryContent {
  question: string;
  /** Free for the client; ragkit reads `engine` (its id) or else `index`, and `k` (how many passages). */
  context?: Record<string, unknown>;
}

/** The whole answer, to the asker alone. */
export interface Response {
  type: 'response';
  content: ResponseContent;
  id?: string;
}

/** An answer with `[n]` markers, and the sources that the markers name. */
export interface ResponseContent {
  answer: string;
  sources: Source[];
  /** The documents hold no answer; there are no sources. */
  abstained: boolean;
  index?: string;
  model?: string;
  seconds?: number;
}

/** A piece of an answer while it is made. The pieces together are a preview; `Response` is the answer. */
export interface ResponseDelta {
  type: 'response_delta';
  content: DeltaContent;
  id?: string;
}

/** A place in the hub's history. */
export interface Since {
  epoch: string;
  seq: number;
}

/** Everything that a late joiner needs, as of `seq`: live tasks, engines, recent follow-ups and results. */
export interface Snapshot {
  type: 'snapshot';
  epoch: string;
  seq: number;
  tasks: (IndexingProgress | ExperimentProgress)[];
  engines: Engine[];
  follow_ups: FollowUpQuestions[];
  /** The newest of each experiment, oldest first; of large ones without the leaderboard. */
  results: ExperimentResult[];
  id?: string;
}

/** A passage that an answer cites: `document.text[start:end] == text`. */
export interface Source {
  /** The `n` of its `[n]`. */
  number: number;
  document_id: string;
  title: string;
  source: string;
  text: string;
  /** Offsets count characters (Unicode code points: Python's, not JavaScript's UTF-16 units). */
  start: number;
  end: number;
  /** Parts of the passage that the answer repeats word for word, as offsets into the document. */
  quotes: [number, number][];
  heading: string | null;
  page: number | null;
  score: number | null;
}

/** Choose topics, and ask for what was missed. */
export interface Subscribe {
  type: 'subscribe';
  /** Types of broadcasts; all without it. */
  topics?: string[] | null;
  /** The last event that was seen. */
  since?: Since | null;
  id?: string;
}
