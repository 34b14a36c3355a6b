/** What the views ask of the page around them. */

import type { Origin, Source } from '../client/messages.js';
import type { Format, Words } from './words.js';

/** What the page around the views can do for them. */
export interface Host {
  readonly words: Words;
  readonly format: Format;
  /** Where in localStorage questions and answers are kept. */
  readonly storageKey: string;
  /** Aborted when the views go away. */
  readonly ended: AbortSignal;
  /** Show what has changed, in the next frame or after some milliseconds. */
  refresh(afterMs?: number): void;
  canOpenOrigin?(origin: Origin): boolean;
  openOrigin?(origin: Origin): void;
  canOpenSource?(source: Source): boolean;
  openSource?(source: Source): void;
}
