/** The interface between the views and the surrounding page. */

import type { Origin, Source } from '../client/messages.js';
import type { Format, Words } from './words.js';

/** The services that the surrounding page provides to the views. */
export interface Host {
  readonly words: Words;
  readonly format: Format;
  /** The localStorage key of the questions and answers. */
  readonly storageKey: string;
  /** Aborted when the views are disposed. */
  readonly ended: AbortSignal;
  /** Schedule an update, in the next frame or after some milliseconds. */
  refresh(afterMs?: number): void;
  canOpenOrigin?(origin: Origin): boolean;
  openOrigin?(origin: Origin): void;
  canOpenSource?(source: Source): boolean;
  openSource?(source: Source): void;
}
