/** The current state, computed by applying every message of the socket in order. Uses neither the DOM nor a socket. */

import type {
  Engine,
  ExperimentProgress,
  ExperimentResult,
  FollowUpQuestions,
  IndexingProgress,
  ListenerMessage,
  Origin,
  Snapshot,
} from './messages.js';

export type Task = IndexingProgress | ExperimentProgress;

const MAX_ENDED = 100;
const MAX_LIVE = 2_000;
const MAX_FOLLOW_UPS = 20;
const MAX_RESULTS = 20;
const MAX_LEADERBOARD = 200;
const MAX_FAILURES = 100;
/** Maximum length of one text, in characters: a publisher may send megabytes. */
const MAX_TEXT = 2_000;
const MAX_RESULT = 300_000;

/** Whether a task has reached a terminal state. */
export function hasEnded(task: Task): boolean {
  return task.state !== 'queued' && task.state !== 'running';
}

/** Return a key that is unique among the tasks of all publishers. */
export function taskKey(task: { type: string; task_id: string; origin?: Origin }): string {
  const kind = task.type.startsWith('experiment') ? 'experiment' : task.type;
  return `${task.origin?.run_id ?? ''} ${kind} ${task.task_id}`;
}

export class Activity {
  /** Tasks that have not ended. */
  readonly live = new Map<string, Task>();
  /** The most recently ended tasks, in the order in which they ended. */
  readonly ended = new Map<string, Task>();
  /** The newest row and leaderboard of each experiment. */
  readonly results = new Map<string, ExperimentResult>();
  /** The offered engines, newest first. */
  engines: Engine[] = [];
  /** In order of arrival, newest last. */
  followUps: FollowUpQuestions[] = [];
  /** For each task, the number of tasks seen before it: the display order. */
  readonly began = new Map<string, number>();
  /** Whether a snapshot has arrived. Before that, an empty state only means that nothing is known. */
  known = false;
  private seen = 0;

  /** Apply a message; return whether it changed anything visible. */
  apply(message: ListenerMessage): boolean {
    switch (message.type) {
      case 'indexing_progress':
      case 'experiment_progress':
        this.applyTask(message);
        return true;
      case 'experiment_result':
        this.applyResult(message);
        return true;
      case 'follow_up_questions':
        this.followUps = [...this.followUps, shortQuestions(message)].slice(-MAX_FOLLOW_UPS);
        return true;
      case 'engines':
        this.engines = message.engines;
        return true;
      case 'snapshot':
        this.applySnapshot(message);
        return true;
      case 'gap':
        this.applySnapshot(message.snapshot);
        return true;
      default:
        return false;
    }
  }

  private applyTask(given: Task): void {
    const task = inShort(given);
    const key = taskKey(task);
    if (!this.began.has(key)) {
      this.began.set(key, (this.seen += 1));
      dropOldest(this.began, MAX_LIVE + MAX_ENDED);
    }
    if (hasEnded(task)) {
      this.live.delete(key);
      this.ended.delete(key);
      this.ended.set(key, task);
      dropOldest(this.ended, MAX_ENDED);
    } else {
      this.ended.delete(key);
      this.live.set(key, task);
      dropOldest(this.live, MAX_LIVE);
    }
  }

  private applyResult(result: ExperimentResult): void {
    const key = taskKey(result);
    const leaderboard = result.leaderboard.slice(0, MAX_LEADERBOARD);
    const isLarge = JSON.stringify(leaderboard).length > MAX_RESULT;
    // Keep its position: leaderboards that swap places at every row would be unreadable.
    this.results.set(key, { ...result, leaderboard: isLarge ? leaderboard.slice(0, 10) : leaderboard });
    dropOldest(this.results, MAX_RESULTS);
  }

  /** Tasks that are missing from the snapshot have ended in the meantime; tasks that had already ended stay. */
  private applySnapshot(snapshot: Snapshot): void {
    this.live.clear();
    snapshot.tasks.forEach((task) => this.applyTask(task));
    (snapshot.results ?? []).forEach((result) => this.applyResult(result));
    this.engines = snapshot.engines;
    this.followUps = snapshot.follow_ups.slice(-MAX_FOLLOW_UPS).map(shortQuestions);
    this.known = true;
  }
}

function inShort(task: Task): Task {
  const message = task.message && cut(task.message);
  if (task.type === 'experiment_progress') {
    return { ...task, message };
  }
  const failures = task.failures.slice(0, MAX_FAILURES);
  return { ...task, message, failures: failures.map(({ source, reason }) => ({ source, reason: cut(reason) })) };
}

function shortQuestions(event: FollowUpQuestions): FollowUpQuestions {
  return { ...event, questions: event.questions.slice(0, 10).map(cut) };
}

function cut(text: string): string {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text;
}

function dropOldest(map: Map<string, unknown>, most: number): void {
  while (map.size > most) {
    map.delete(map.keys().next().value!);
  }
}

/** The fraction of a task that is done, from 0 to 1; null if not known yet. */
export function doneShare(task: Task): number | null {
  if (task.state === 'done') {
    return 1;
  }
  const isExperiment = task.type === 'experiment_progress';
  const done = isExperiment ? task.cells_done : task.chunks_done;
  const total = isExperiment ? task.cells_total : task.chunks_total;
  return total ? Math.min(1, done / total) : null;
}
