/** Creates elements without HTML: text from documents, models and file names never becomes markup. */

type Listener = (event: never) => void;
type Attribute = string | number | boolean | undefined | Listener;

/** Create an element; functions become listeners, `false` and `undefined` omit an attribute. */
export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Record<string, Attribute> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') {
      element.addEventListener(name, value as EventListener);
    } else {
      set(element, name, value);
    }
  }
  element.append(...children);
  return element;
}

/** Set an attribute if its value differs. */
export function set(element: Element, name: string, value: string | number | boolean | undefined): void {
  if (value === undefined || value === false) {
    element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value === true ? '' : String(value));
  }
}

/** Set the text if it differs; an empty text hides the element. */
export function say(element: HTMLElement, text: string): void {
  if (element.textContent !== text) {
    element.textContent = text;
  }
  element.hidden = text === '';
}

/** Set the children in this order with as few moves as possible: a moved element loses focus and selection. */
export function arrange(parent: Element, children: readonly Element[]): void {
  const wanted = new Set(children);
  for (const child of [...parent.children]) {
    if (!wanted.has(child)) {
      child.remove();
    }
  }
  let at = parent.firstElementChild;
  for (const child of children) {
    if (at && child !== at && child === at.nextElementSibling) {
      at = child; // the previous child was moved and comes later
    }
    if (child === at) {
      at = at.nextElementSibling;
    } else {
      parent.insertBefore(child, at);
    }
  }
}

/** For `beforeinput`: JupyterLab suppresses the line break of Shift+Enter in elements inside a cell. */
export function keepLineBreak(event: InputEvent): void {
  if (event.inputType === 'insertLineBreak') {
    event.stopImmediatePropagation();
  }
}

/** Announces changes to screen readers, at a limited rate. */
export class Announcer {
  readonly element = h('div', { class: 'rk-unseen', role: 'status', 'aria-live': 'polite' });
  private last = 0;

  constructor(private readonly everySeconds = 10) {}

  /** Announce a text; with `urgent`, regardless of the rate limit. */
  say(text: string, urgent = false): void {
    const now = Date.now();
    if (urgent || now - this.last >= 1000 * this.everySeconds) {
      this.last = now;
      this.element.textContent = text;
    }
  }
}
