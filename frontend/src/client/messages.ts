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

/** Cancel the query with this `id`; the asking listener receives the error CANCELLED. */
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

/** The engines that are on offer now, newest first. */
export interface EnginesChanged {
  type: 'engines';
  /** Id of the hub's history, set by the hub. With a new epoch, `seq` starts again at 1. */
  epoch: string;
  /** Sequence number 1, 2, 3, ... within an epoch, set by the hub. */
  seq: number;
  /** Time of publication, RFC 3339. The journal of a batch run may arrive days later. */
  time: string;
  /** The publisher; absent in `engines`, which the hub itself broadcasts. */
  origin?: Origin;
  engines: Engine[];
}

/** An error and what to do next, sent to one listener or publisher only. */
export interface Error {
  type: 'error';
  content: ErrorContent;
  id?: string;
}

export interface ErrorContent {
  message: string;
  code: ErrorCode;
}

/** The state of an experiment; the newest message of a `task_id` replaces the earlier ones. */
export interface ExperimentProgress {
  type: 'experiment_progress';
  /** Id of the hub's history, set by the hub. With a new epoch, `seq` starts again at 1. */
  epoch: string;
  /** Sequence number 1, 2, 3, ... within an epoch, set by the hub. */
  seq: number;
  /** Time of publication, RFC 3339. The journal of a batch run may arrive days later. */
  time: string;
  /** The publisher; absent in `engines`, which the hub itself broadcasts. */
  origin?: Origin;
  task_id: string;
  experiment: string;
  state: 'cancelled' | 'done' | 'failed' | 'queued' | 'running';
  /** Number of results so far, such as the rankings of one question by one system, or runs of a sweep. */
  cells_done: number;
  cells_total: number | null;
  eta_seconds: number | null;
  message: string | null;
}

/** A new row of an experiment's results, and the leaderboard so far. */
export interface ExperimentResult {
  type: 'experiment_result';
  /** Id of the hub's history, set by the hub. With a new epoch, `seq` starts again at 1. */
  epoch: string;
  /** Sequence number 1, 2, 3, ... within an epoch, set by the hub. */
  seq: number;
  /** Time of publication, RFC 3339. The journal of a batch run may arrive days later. */
  time: string;
  /** The publisher; absent in `engines`, which the hub itself broadcasts. */
  origin?: Origin;
  task_id: string;
  experiment: string;
  row: Record<string, unknown>;
  leaderboard: Record<string, unknown>[];
}

/** A document that could not be read, and the reason. */
export interface Failure {
  source: string;
  reason: string;
}

/** Suggested follow-up questions to the last answer; each has an answer in the corpus. */
export interface FollowUpQuestions {
  type: 'follow_up_questions';
  /** Id of the hub's history, set by the hub. With a new epoch, `seq` starts again at 1. */
  epoch: string;
  /** Sequence number 1, 2, 3, ... within an epoch, set by the hub. */
  seq: number;
  /** Time of publication, RFC 3339. The journal of a batch run may arrive days later. */
  time: string;
  /** The publisher; absent in `engines`, which the hub itself broadcasts. */
  origin?: Origin;
  questions: string[];
  index?: string;
  /** The question that was answered. */
  question?: string;
  /** The `id` of the answered query; for an `engine.ask()` in a notebook, `answer.id`. */
  request_id?: string;
}

/** Events up to `snapshot.seq` were not sent to this listener; the snapshot replaces them. */
export interface Gap {
  type: 'gap';
  snapshot: Snapshot;
  id?: string;
}

/** The state of an indexing task; the newest message of a `task_id` replaces the earlier ones. */
export interface IndexingProgress {
  type: 'indexing_progress';
  /** Id of the hub's history, set by the hub. With a new epoch, `seq` starts again at 1. */
  epoch: string;
  /** Sequence number 1, 2, 3, ... within an epoch, set by the hub. */
  seq: number;
  /** Time of publication, RFC 3339. The journal of a batch run may arrive days later. */
  time: string;
  /** The publisher; absent in `engines`, which the hub itself broadcasts. */
  origin?: Origin;
  task_id: string;
  index: string;
  state: 'cancelled' | 'done' | 'failed' | 'queued' | 'running';
  documents_done: number;
  documents_total: number | null;
  chunks_done: number;
  chunks_total: number | null;
  current_document: string | null;
  /** Chunks per second, over the last few seconds. */
  rate: number | null;
  eta_seconds: number | null;
  /** The first 100 documents that failed. */
  failures: Failure[];
  failures_total: number;
  /** Why the task ended, when it failed or was cancelled. */
  message: string | null;
}

/** The publishing program: its kind, its name, and the id of this run of it. */
export interface Origin {
  kind: 'cli' | 'notebook' | 'papermill' | 'script';
  name: string;
  run_id: string;
  /** Absolute path of the notebook or script on the publisher's machine; absent if unknown. */
  path?: string;
}

/** A heartbeat of the application; browsers do not expose the WebSocket ping. */
export interface Ping {
  type: 'ping';
  id?: string;
}

/** The reply to a `Ping`, with the same `id`. */
export interface Pong {
  type: 'pong';
  id?: string;
}

/** Ask an engine. */
export interface Query {
  type: 'query';
  content: QueryContent;
  /** Every reply has this id; if absent, the hub assigns one. */
  id?: string;
}

/** A question and its context. */
export interface QueryContent {
  question: string;
  /** Free for the client. ragkit reads `engine` (an id), else `index`; and `k` (the number of passages). */
  context?: Record<string, unknown>;
}

/** The complete answer, sent to the asking listener only. */
export interface Response {
  type: 'response';
  content: ResponseContent;
  id?: string;
}

/** An answer with `[n]` markers, and the sources that the markers refer to. */
export interface ResponseContent {
  answer: string;
  sources: Source[];
  /** True if the documents contain no answer; there are no sources then. */
  abstained: boolean;
  index?: string;
  model?: string;
  seconds?: number;
}

/** A piece of an answer while it is generated. The pieces are a preview; `Response` is the answer. */
export interface ResponseDelta {
  type: 'response_delta';
  content: DeltaContent;
  id?: string;
}

/** A position in the hub's history. */
export interface Since {
  epoch: string;
  seq: number;
}

/** The state as of `seq` for a new listener: tasks, engines, recent follow-up questions and results. */
export interface Snapshot {
  type: 'snapshot';
  epoch: string;
  seq: number;
  tasks: (IndexingProgress | ExperimentProgress)[];
  engines: Engine[];
  follow_ups: FollowUpQuestions[];
  /** The newest result of each experiment, oldest first; large results have no leaderboard. */
  results: ExperimentResult[];
  id?: string;
}

/** A passage cited by an answer: `document.text[start:end] == text`. */
export interface Source {
  /** The `n` of its marker `[n]`. */
  number: number;
  document_id: string;
  title: string;
  source: string;
  text: string;
  /** Offset in Unicode code points, as in Python; not in UTF-16 units, as in JavaScript. */
  start: number;
  end: number;
  /** Spans that the answer quotes verbatim, as `[start, end]` offsets into the document. */
  quotes: [number, number][];
  heading: string | null;
  page: number | null;
  score: number | null;
}

/** Choose topics and request missed events. */
export interface Subscribe {
  type: 'subscribe';
  /** Types of broadcasts; all types if absent. */
  topics?: string[] | null;
  /** The last event that the listener received. */
  since?: Since | null;
  id?: string;
}
