import { createElement, useEffect, useImperativeHandle, useRef, useState } from "react";
import { connect } from "ragkit";

/**
 * Keeps a connection to ragkit while it is mounted, gives every message to `onMessage`, and shows how it stands.
 * Its `ref` has `ask(question, { onDelta, signal, context })`.
 */
export function WebSocketHandler({ url, token, onMessage, ref }) {
  const [state, setState] = useState({ status: "connecting" });
  const socket = useRef(null);
  const newest = useRef(onMessage);

  useEffect(() => {
    newest.current = onMessage; // another function needs no other connection
  });

  useEffect(() => {
    const unmounted = new AbortController();
    socket.current = connect({
      url,
      token,
      signal: unmounted.signal,
      onMessage: (message) => newest.current?.(message),
      onState: setState,
    });
    return () => unmounted.abort();
  }, [url, token]);

  useImperativeHandle(ref, () => ({ ask: (...question) => socket.current.ask(...question) }), []);

  const { status, problem } = state;
  return createElement("p", { role: "status" }, problem ? `${status} (${problem})` : status);
}
