/**
 * The notebook widget, for anywidget. It listens to the socket in the browser, so it keeps updating while the
 * kernel is busy. Where no server can be reached (VS Code, Colab), the kernel sends its own events over the
 * widget's channel. In a saved page without a kernel, the saved state is shown.
 */

import { hasEnded } from './client/activity.js';
import { pageConfig } from './client/addresses.js';
import { h } from './views/dom.js';
import { LiveView, type ViewName } from './views/live.js';
import type { ClientMessage, ListenerMessage, ResponseContent } from './client/messages.js';
import { fileOf, serverPath } from './paths.js';
import { AskError, type AskOptions, type ConnectionState, RagkitSocket } from './client/socket.js';
import { pageLanguage, words } from './views/words.js';

/** The part of anywidget's model that we use. */
interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, callback: (content: FromKernel) => void): void;
  off(event: string, callback: (content: FromKernel) => void): void;
}

type FromKernel = { kind: 'attached' } | { kind: 'message'; message: ListenerMessage };

/** Sends and receives the same messages through the kernel, over the widget's channel. */
class KernelChannel {
  /** Whether the kernel has responded. */
  isThere = false;
  private listens = false;
  private readonly asked = new Map<string, { options: AskOptions; settle: (message: ListenerMessage) => void }>();

  constructor(
    private readonly model: Model,
    private readonly changed: () => void,
    private readonly onMessage: (message: ListenerMessage) => void,
  ) {
    model.on('msg:custom', this.receive);
  }

  /** Make the kernel start or stop sending its events. */
  listen(wanted: boolean): void {
    if (wanted !== this.listens) {
      this.listens = wanted;
      this.model.send({ kind: wanted ? 'listen' : 'unlisten' });
    }
  }

  ask(question: string, options: AskOptions): Promise<ResponseContent> {
    const id = options.id!;
    return new Promise((resolve, reject) => {
      const settle = (message: ListenerMessage): void => {
        this.asked.delete(id);
        if (message.type === 'response') {
          resolve(message.content);
        } else if (message.type === 'error') {
          reject(new AskError(message.content.code, message.content.message));
        }
      };
      this.asked.set(id, { options, settle });
      this.send({ type: 'query', id, content: { question, context: options.context } });
      options.signal?.addEventListener('abort', () => {
        this.send({ type: 'cancel', id });
        // Do not wait for the kernel: a busy one reacts late, and a dead one never.
        settle({ type: 'error', id, content: { code: 'CANCELLED', message: 'Stopped.' } });
      });
    });
  }

  close(): void {
    this.listen(false);
    this.model.off('msg:custom', this.receive);
    for (const [id, { settle }] of [...this.asked]) {
      settle({ type: 'error', id, content: { code: 'CANCELLED', message: 'The widget was closed.' } });
    }
  }

  private send(message: ClientMessage): void {
    this.model.send({ kind: 'message', message });
  }

  private readonly receive = (content: FromKernel): void => {
    if (content.kind === 'attached') {
      this.isThere = true;
      this.changed();
    } else if (content.kind === 'message') {
      const { message } = content;
      const asked = 'id' in message && message.id ? this.asked.get(message.id) : undefined;
      if (message.type === 'response_delta') {
        asked?.options.onDelta?.(message.content.delta);
      } else if (asked) {
        asked.settle(message);
      } else {
        this.onMessage(message);
      }
    }
  };
}

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const language = String(model.get('language') || pageLanguage());
  const texts = words(language);
  const config = pageConfig();
  const isJupyter = Boolean(config.baseUrl);
  let wasOpen = false;

  const socket = new RagkitSocket({
    start: false,
    onMessage: (message) => live.apply(message),
    onState: (state) => {
      if (state.status === 'open') {
        wasOpen = true; // the hub has more events than this kernel
        kernel.listen(false);
      } else if (state.status === 'waiting' && !wasOpen) {
        kernel.listen(true);
      }
      show(state);
    },
  });
  const show = (state: ConnectionState): void => {
    live.viaKernel = kernel.isThere && !wasOpen;
    live.become(state);
  };
  const kernel = new KernelChannel(
    model,
    () => show(socket.state),
    (message) => !wasOpen && live.apply(message),
  );
  const ask = (question: string, options: AskOptions): Promise<ResponseContent> => {
    if (live.viaKernel) {
      return kernel.ask(question, options);
    }
    const nobody = texts.__('Nobody answers in a saved page. Open the notebook and run its cells.');
    return isJupyter ? socket.ask(question, options) : Promise.reject(new AskError('CONNECTION_LOST', nobody));
  };
  const tell = (values: Record<string, unknown>): void => {
    Object.entries(values).forEach(([name, value]) => model.set(name, value));
    model.save_changes();
  };
  const live: LiveView = new LiveView({
    words: texts,
    language,
    storageKey: `ragkit:ask:${config.baseUrl ?? location.pathname}`,
    views: model.get('views') as ViewName[],
    channel: {
      ask,
      wake: () => socket.wake(),
      get isOpen() {
        return live.viaKernel || socket.isOpen;
      },
    },
    answered: (question, answer) => tell({ question, answer }),
    chosen: (question) => tell({ follow_up: question }),
    canOpenOrigin: ({ path }) => isJupyter && serverPath(path) !== null,
    openOrigin: ({ path }) => openFile(serverPath(path)),
    canOpenSource: ({ source }) => isJupyter && serverPath(fileOf(source)) !== null,
    openSource: ({ source }) => openFile(serverPath(fileOf(source))),
  });
  el.append(h('div', { class: 'rk-widget' }, live.element));

  showSaved(model.get('_snapshot') as ListenerMessage, live, isJupyter);
  if (isJupyter) {
    socket.start();
  } else {
    live.saved = true;
    kernel.listen(true);
  }
  return () => {
    kernel.close();
    socket.close();
    live.dispose();
  };
}

/** Show the state saved with the notebook, until the hub or the kernel responds. */
function showSaved(saved: ListenerMessage, live: LiveView, isJupyter: boolean): void {
  if (saved?.type !== 'snapshot') {
    return;
  }
  try {
    // Saved running tasks may have ended; in a saved page no message will ever say so.
    live.apply({ ...saved, tasks: isJupyter ? saved.tasks.filter(hasEnded) : saved.tasks });
    live.activity.known = !isJupyter;
  } catch (problem) {
    console.warn('ragkit: what was saved with this notebook cannot be shown', problem); // saved by another version
  }
}

/** Open in a new browser tab, because a widget cannot control JupyterLab. */
function openFile(path: string | null): void {
  if (path !== null) {
    const file = path.split('/').map(encodeURIComponent).join('/');
    window.open(`${pageConfig().baseUrl}lab/tree/${file}`, '_blank', 'noopener');
  }
}

export default { render };
