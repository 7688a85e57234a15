// sse.d.ts - the types of the page script, which sse::script() serves. Put it beside your sources as
// the declaration of the module, such as "/sse.js":
//
//     import { connect } from "/sse.js";
//     const stream = connect("/subscribe/prices", {
//         onmessage: event => show(event.data),
//         ongap: gap => reload(gap),
//         headers: async () => ({ Authorization: "Bearer " + await freshToken() }),
//     });
//     stream.addEventListener("trade", event => show(event.data));

/** "connecting" also between two attempts; "closed" for good. */
export type State = "connecting" | "open" | "closed";

/** Messages after `from`, up to and including `to`, may be missing. */
export interface Gap {
    reason: "too_old" | "lapped" | "epoch" | "rewound" | "unknown";
    from: string;
    to: string;
    /** Only where it is exact. */
    missed?: number;
}

export interface Options {
    /** More topics, as ?topic= in the URL. */
    topics?: string[];
    /**
     * Header fields, such as a token: asked for before each attempt. The status is 0, or 401 or 403
     * when the server has refused the fields before; refused once more, the stream ends.
     */
    headers?: (status: number) => HeadersInit | Promise<HeadersInit>;
    /** As of fetch(); "same-origin". */
    credentials?: RequestCredentials;
    /**
     * Where the stream begins, such as the id beside a snapshot; else with what comes next. What a
     * stream begins with by itself, such as ?last=20, reaches the tab alone that reads.
     */
    lastEventId?: string;
    /**
     * ms between the server's heartbeats, 15000. The stream is opened again after a silence of 2.5
     * times this, or of 1.25 times when the page becomes visible or the network is back. 0: never.
     */
    heartbeat?: number;
    /**
     * Whether the tabs of the origin share one stream, true. Tabs share it if the URL, the topics,
     * `credentials` and this value are the same: where tabs may have different users, let it be a
     * string that differs too. Without Web Locks, as on pages over plain HTTP, each has its own.
     */
    shared?: boolean | string;
    /** Events without a name. Others: addEventListener(name, ...). */
    onmessage?: (event: MessageEvent<string>) => void;
    /** The event `gap`, read. */
    ongap?: (gap: Gap, event: MessageEvent<string>) => void;
    /** Each change; the status or the error that it is due to. 204 means: the server has ended it. */
    onstate?: (state: State, why: { status?: number; error?: unknown }) => void;
}

export interface Stream extends EventTarget {
    readonly state: State;
    /** Of the last event that this tab got. */
    readonly lastEventId: string;
    /** Whether it is this tab that reads for all. */
    readonly reads: boolean;
    /** Ends it in this tab; the others go on. */
    close(): void;
    addEventListener(name: string, listener: (event: MessageEvent<string>) => void,
                     options?: boolean | AddEventListenerOptions): void;
    addEventListener(name: string, listener: EventListenerOrEventListenerObject | null,
                     options?: boolean | AddEventListenerOptions): void;
}

export function connect(url: string | URL, options?: Options): Stream;
