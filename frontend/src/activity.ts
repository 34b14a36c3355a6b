/** What goes on, as of the last message: made by applying every message of the socket in order. No page, no socket. */

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

/** Whether a task in this state changes no more. */
export function hasEnded(task: Task): boolean {
  return task.state !== 'queued' && task.state !== 'running';
}

/** Name a task among all of all publishers. */
export function taskKey(task: { type: string; task_id: string; origin?: Origin }): string {
  const kind = task.type.startsWith('experiment') ? 'experiment' : task.type;
  return `${task.origin?.run_id ?? ''} ${kind} ${task.task_id}`;
}

export class Activity {
  /** Tasks that have not ended, in the order in which they began. */
  readonly live = new Map<string, Task>();
  /** The last tasks that have, in the order in which they did. */
  readonly ended = new Map<string, Task>();
  /** By experiment, its newest row and leaderboard. */
  readonly results = new Map<string, ExperimentResult>();
  /** On offer, newest first. */
  engines: Engine[] = [];
  /** The newest last. */
  followUps: FollowUpQuestions[] = [];
  /** Whether there has been a snapshot: before it, that there is nothing means nothing. */
  known = false;

  /** Take a message in; return whether it changed anything that is shown. */
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
        this.followUps = [...this.followUps, message].slice(-MAX_FOLLOW_UPS);
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

  private applyTask(task: Task): void {
    const key = taskKey(task);
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
    this.results.delete(key);
    this.results.set(key, { ...result, leaderboard: result.leaderboard.slice(0, MAX_LEADERBOARD) });
    dropOldest(this.results, MAX_RESULTS);
  }

  /** What the snapshot does not know has ended meanwhile; what had ended before stays. */
  private applySnapshot(snapshot: Snapshot): void {
    this.live.clear();
    snapshot.tasks.forEach((task) => this.applyTask(task));
    (snapshot.results ?? []).forEach((result) => this.applyResult(result));
    this.engines = snapshot.engines;
    this.followUps = snapshot.follow_ups.slice(-MAX_FOLLOW_UPS);
    this.known = true;
  }
}

function dropOldest(map: Map<string, unknown>, most: number): void {
  while (map.size > most) {
    map.delete(map.keys().next().value!);
  }
}

/** How much of a task is done, from 0 to 1; null where that is not known yet. */
export function doneShare(task: Task): number | null {
  if (task.state === 'done') {
    return 1;
  }
  const [done, total] =
    task.type === 'experiment_progress'
      ? [task.cells_done, task.cells_total]
      : task.chunks_total !== null
        ? [task.chunks_done, task.chunks_total]
        : [task.documents_done, null];
  return total ? Math.min(1, done / total) : null;
}
