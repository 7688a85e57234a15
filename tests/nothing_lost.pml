// nothing_lost.pml - a model, for the model checker Spin, of the promise that nothing is lost
// without a word. tests/model.sh checks every interleaving of it, in several configurations.
//
// Two publishers; the ring; two workers, each of which drains it into a log of its own; a client
// that one of them serves, that is slow, is cut, and comes back to either with its last event id;
// perhaps another server in place of the first. A worker takes its events one by one, as its
// io_context does; publishers and client run between any two. Each part names what it stands for
// in sse.hpp. Not in here: memory orders and the cached gate of the ring (tests/ring_model.cpp),
// several topics of one stream, a topic's own history, ids that the program gives.
//
// A position is a number of messages: the id "has everything up to n" and position n are the same.
// The client judges what it receives, for it knows what was published. It objects as soon as
//   - a message comes again, or out of order
//   - a message or an id comes, and one before it was neither received nor named by a gap
//   - it is told an id from before it asked for what is new
// When nothing can happen any more, it must have been told of everything: no wake-up was lost. A
// publisher objects when it overwrites what a worker has not read.
//
// spin -a -DNAME=VALUE...
//   MESSAGES  published in all (4)            CUTS     times the connection is lost, at most (1)
//   HISTORY   options.history (2)             SOCKET   events on their way, at most (1)
//   POLICY    disconnect, skip_ahead, conflate, hold_back: as lag_policy
//   TOPICS    1: some messages are not for the client
//   OLDEST    1: the client may begin with start::oldest()
//   HELD      1: it begins with a held subscription and a snapshot
//   ON_GAP    1: options.on_gap sends a snapshot in place of the event
//   AGE       1: options.history_age, so the log forgets at any time
//   HANDLER   1: handlers publish too, on a worker's thread
//   RESTART   1: another server takes over, once, at any time
//   FINE      1: publishers and worker meet at every access to what they share
//   ONLY      0, 1: there is but this worker
//   FAULT     one of those below, which the judge must find
#ifndef MESSAGES
#define MESSAGES 4
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef HISTORY
#define HISTORY 2
#endif
#ifndef SOCKET
#define SOCKET 1
#endif
#ifndef POLICY
#define POLICY skip_ahead
#endif
#ifndef TOPICS
#define TOPICS 0
#endif
#ifndef OLDEST
#define OLDEST 0
#endif
#ifndef HELD
#define HELD 0
#endif
#ifndef ON_GAP
#define ON_GAP 0
#endif
#ifndef AGE
#define AGE 0
#endif
#ifndef HANDLER
#define HANDLER 0
#endif
#ifndef RESTART
#define RESTART 0
#endif
#ifndef FINE
#define FINE 0
#endif
#ifndef FAULT
#define FAULT none
#endif
#define RING 2 // options.ring_capacity

#define disconnect 0
#define skip_ahead 1
#define conflate 2
#define hold_back 3

// Planted faults.
#define none 0
#define gate_too_far 1         // publishers pass the slowest worker
#define no_second_look 2       // a worker lies down without another look into the ring
#define claimed_ignored 3      // ... without streams, though a place is claimed and not filled
#define pass_forgotten 4       // the log forgets what the pass in hand covers
#define now_from_log 5         // start::now() is where this worker's log ends
#define no_first_id 6          // the id of a stream's position waits for the first message
#define replay_late 7          // a replay begins one too late
#define replay_early 8         // ... one too early
#define replay_settled 9      // ... behind the last pass, as if the stream had all before it
#define replay_left 10         // a replay is left to the next pass, which does not look back
#define replay_left_in_pass 11 // ... only one that begins within the pass in hand
#define ahead_unknown 12       // an id that this worker's log has not reached counts as unknown
#define ahead_clamped 13       // ... as the end of its log
#define epoch_ignored 14       // an id is taken for one of this server
#define past_unknown 15        // what was forgotten before the subscription is not looked up
#define block_over_position 16 // the whole block of a pass goes to a stream that began within it
#define gap_forgotten 17       // what is forgotten is passed over
#define gap_too_short 18       // a gap does not name the last message that is missing
#define gap_id_too_far 19      // the id of a gap promises a message that is still to come
#define heartbeat_behind 20    // a heartbeat moves the id of a client that is behind
#define heartbeat_back 21      // ... moves it back to where the worker is
#define heartbeat_over_pass 22 // ... moves it over the pass in hand
#define held_ignored 23        // ... moves it while the subscription is held
#define held_id_first 24       // a held stream begins with its id, before the snapshot
#define snapshot_first 25      // the snapshot is read, then the position is fixed
#define key_ignored 26         // conflate leaves out a message for the sake of another key
#define held_back_forgotten 27 // the log forgets what it keeps for those who hold publishers back
#define hold_not_ended 28      // publishers go on waiting for a client that is gone
#define snapshot_exact 29      // the judge asks too much: that nothing comes which the snapshot has

#define most(a, b) ((a) > (b) -> (a) : (b))
#define least(a, b) ((a) < (b) -> (a) : (b))

#if FINE
#define one_event
#else
#define one_event atomic
#endif

// --- what threads share: >>ring, >>hub

byte tail;            // broadcast_ring::published(), server::last_id(): places claimed
byte slot[RING];      // the sequence + 1 of the message that was handed over there
bool awake[2] = true; // worker::awake_
bool posted[2];       // fan_out() waits in the worker's io_context
bit epoch;            // which server this is
byte left = MESSAGES; // to be published
byte inside;          // threads that are in the middle of something
byte concerns[2];     // for each epoch the messages that are for the client, as bits

// --- each worker: >>log, >>feed. What it has read is in its log, so its cursor is the log's end.

byte begin[2];        // frame_log::begin()
byte end_[2];         // frame_log::end()
byte kept[2];         // frame_log::older_: those before begin, kept as the newest of their key
byte forgotten[2];    // node::forgotten of the client's topic, node::dropped for conflate
byte fanned[2];       // feed::fanned_: everything before it was offered to every stream
byte planned[2];      // feed::planned_: the pass in hand ends here
bool fanning[2];      // worker::fanning_
bool job[2];          // the pass in hand has something for the client's topic
bool holding[2];      // feed::holding_: publishers must wait for a client

// --- the client's stream, on the worker that serves it: receiver

#define nobody 2
byte at = nobody;
byte next;            // receiver::next_: its position, which may be ahead of the worker's log
byte told;            // receiver::told_: the last id written
byte excused;         // receiver::excused: what is missing before was announced
bool busy;            // receiver::busy_: goes on by itself, once the socket has room
bool fresh;           // receiver::fresh_: came back, and has had nothing yet
bool primed;          // receiver::primed_: has an id to come back with
bool pending;         // receiver::pending: its id is of another epoch
bool late;            // it came when the pass in hand had begun
byte held;            // receiver::held_; 1: held, 2: and the snapshot is written

// --- the client and what the judge knows

mtype = { id, message, gap, snapshot, head };
chan wire = [SOCKET] of { mtype, byte, byte, byte }; // what; its id; a gap's `from` and `to`
bit wire_epoch;                                      // who wrote it

mtype = { seeking, accepted, open, closed };
mtype link = closed;
#define unset 255
byte last_id = unset; // what it comes back with
bit last_id_epoch;
byte cuts = CUTS;

byte upto = unset;    // everything before was received, or announced, or is in a snapshot
bit upto_epoch;
byte asked;           // server::last_id() when it asked for what is new
byte seen;            // what the snapshot has, for snapshot_exact

#define wants(e, n) ((concerns[e] >> (n)) & 1)
#define nothing_between(e, a, b) ((a) >= (b) || \
    ((concerns[e] >> (a)) & ((1 << ((b) - (a))) - 1)) == 0)
// A later message with the same key, before `end`: the second has the key of the first, and so on.
#define superseded(e, n, end) ((n) % 2 == 0 && (n) + 1 < (end) && wants(e, (n) + 1))

// ---- publishers ---------------------------------------------------------------------------------

#ifdef ONLY
#define slowest end_[ONLY]
#else
#define slowest least(end_[0], end_[1])
#endif

// worker::wake(), or wake_always() every now and then: see server::try_push().
inline wake(w) {
    if
    :: mine % RING == 0 -> posted[w] = true
    :: else ->
        if
        :: !awake[w] -> awake[w] = true; posted[w] = true
        :: else
        fi
    fi
}

// server::push(): waits for room, claims a place, hands over (broadcast_ring::try_publish), wakes.
proctype publisher() {
    byte mine;
    do
    :: atomic {
        left > 0 && !holding[0] && !holding[1] && tail - slowest < RING + (FAULT == gate_too_far) ->
        inside++;
        left--;
        mine = tail;
        tail++;
        if
        :: concerns[epoch] = concerns[epoch] | (1 << mine)
        :: TOPICS
        fi
       };
       one_event {
        d_step {
            assert(mine < RING || slowest > mine - RING); // read by all who must read it
            slot[mine % RING] = mine + 1
        };
        d_step { wake(0) };
        d_step { wake(1); mine = 0; inside-- }
       }
    :: atomic { left == 0 -> break }
    od
}

// ---- the log ------------------------------------------------------------------------------------

#define without_first(set) ((set) & ((set) - 1))
#define too_many(set) (HISTORY == 1 -> without_first(set) : without_first(without_first(set)))

// frame_log::forget_first(), drop_newest() and feed::forgot(): who loses.
inline forget_first(w) {
    if
    :: !wants(epoch, begin[w]) -> skip
    :: else ->
        if
        :: POLICY != conflate -> forgotten[w] = (at == w -> begin[w] + 1 : 0)
        :: else ->
            if
            :: superseded(epoch, begin[w], end_[w]) -> skip // nobody who wants only the newest
            :: else ->
                kept[w] = kept[w] | (1 << begin[w]);
                if
                :: too_many(kept[w]) ->
                    do
                    :: !((kept[w] >> scan) & 1) -> scan++
                    :: else -> break
                    od;
                    kept[w] = without_first(kept[w]);
                    forgotten[w] = scan + 1;
                    scan = 0
                :: else
                fi
            fi
        fi
    fi;
    begin[w]++
}

// feed::keep(): what the pass in hand covers, and what those have not had who hold publishers back.
#define keep(w) \
    (POLICY == hold_back && FAULT != held_back_forgotten && at == w && (busy || held != 0) \
         -> least(next, fanned[w]) : (FAULT == pass_forgotten -> end_[w] : fanned[w]))

// feed::check_hold(): from half of the history on, until a quarter of it is left.
inline check_hold(w) {
    holding[w] = (at != w -> holding[w] : POLICY == hold_back && (busy || held != 0) &&
                  end_[w] > next + (holding[w] -> HISTORY / 4 : HISTORY / 2))
}

// ---- one stream ---------------------------------------------------------------------------------

#define room_left (len(wire) < SOCKET)

// receiver::write_some(), of one event.
inline write(what, n, from, to) {
    assert(room_left);
    wire!what(n, from, to);
    told = n
}

// feed::missing().
#define lost(w) (forgotten[w] > next && forgotten[w] > excused && FAULT != gap_forgotten)

// feed::announce(): the gap, or a snapshot, or the end. What is still kept goes on from the same
// position; skip goes on live.
inline announce(w) {
    if
    :: !pending && !fresh && (POLICY == disconnect || POLICY == hold_back) ->
        assert(POLICY != hold_back); // publishers have waited
        leave();
        link = closed
    :: else ->
        scan = (pending -> last_id : next);
        excused = forgotten[w];
        if
        :: POLICY == skip_ahead && !pending && !fresh -> next = end_[w]; excused = end_[w]
        :: else
        fi;
        if
        :: ON_GAP -> held = 1 // stream::mend()
        :: else ->
            write(gap, next + (FAULT == gap_id_too_far), scan, excused - (FAULT == gap_too_short));
            primed = true
        fi;
        pending = false;
        scan = 0
    fi
}

// feed::wants(), frame_log::next().
#define to_send(w, n) (wants(epoch, n) && (n >= begin[w] || ((kept[w] >> (n)) & 1)) && \
    !(POLICY == conflate && (superseded(epoch, n, end_[w]) || \
                             (FAULT == key_ignored && !nothing_between(epoch, (n) + 1, end_[w])))))

#define is_held (held != 0 && (FAULT != held_id_first || primed))

// feed::flush(): a gap, the id of the position, the log, in this order, as far as there is room.
inline flush(w) {
    busy = true;
    do
    :: is_held -> busy = false; break
    :: !is_held && !room_left -> break
    :: !is_held && room_left ->
        if
        :: pending || lost(w) ->
            announce(w);
            if
            :: at == nobody -> break
            :: else
            fi
        :: else ->
            if
            :: !primed ->
                if
                :: FAULT == no_first_id -> write(head, next, 0, 0)
                :: else -> write(id, next, 0, excused)
                fi;
                primed = true
            :: else -> // feed::gather()
                scan = next;
                do
                :: scan < end_[w] && !to_send(w, scan) -> scan++
                :: else -> break
                od;
                if
                :: scan < end_[w] ->
                    write(message, scan + 1, 0, 0);
                    next = scan + 1;
                    fresh = false
                :: else ->
                    next = scan; // which may be ahead of the log
                    check_hold(w);
                    busy = false;
                    break
                fi
            fi
        fi
    od;
    scan = 0
}

// feed::deliver(): the stream's share of a pass.
inline deliver(w) {
    if
    :: at != w || busy || held != 0 || next >= planned[w] -> skip
    :: else ->
        if
        :: next > fanned[w] && FAULT != block_over_position -> flush(w) // deliver_alone()
        :: else -> // the block; feed::cut() where the socket is full
            next = fanned[w];
            scan = fanned[w];
            do
            :: scan < planned[w] ->
                if
                :: !wants(epoch, scan) -> scan++
                :: else ->
                    if
                    :: room_left ->
                        assert(scan >= begin[w]); // the log still has it
                        write(message, scan + 1, 0, 0);
                        scan++;
                        next = scan;
                        fresh = false
                    :: else -> busy = true; break
                    fi
                fi
            :: else -> next = planned[w]; break
            od;
            scan = 0
        fi
    fi
}

// feed::remove(), feed::check_hold().
inline leave() {
    if
    :: at != nobody ->
        forgotten[at] = (POLICY == conflate -> forgotten[at] : 0);
        holding[at] = holding[at] && FAULT == hold_not_ended
    :: else
    fi;
    at = nobody;
    next = 0;
    told = 0;
    excused = 0;
    busy = false;
    fresh = false;
    primed = false;
    pending = false;
    late = false;
    held = 0
}

// feed::subscribe(), then stream::begin_streaming(). The position of "now" is the server's, places
// claimed, not where this worker's log ends; it is taken when the worker has drained, so nothing
// between it and fanned_ is left to send. The stream goes on by itself from there, so that a replay
// is sent whatever passes are on their way, and so that it begins with the id of its position: a
// client that is cut before the first message would else come back as a new one.
inline subscribe(w) {
    at = w;
    link = open;
    wire_epoch = epoch;
    late = fanning[w];
    if
    :: POLICY != conflate -> forgotten[w] = (FAULT == past_unknown -> 0 : begin[w])
    :: else
    fi;
    busy = true;
    if
    :: last_id == unset ->
        if
        :: from_oldest -> next = 0; excused = forgotten[w]
        :: else -> next = (FAULT == now_from_log -> end_[w] : tail)
        fi;
        held = HELD
    :: else -> // feed::place_of_id()
        primed = true;
        if
        :: last_id_epoch != epoch && FAULT != epoch_ignored -> pending = true; next = 0
        :: else ->
            assert(last_id <= tail || FAULT == epoch_ignored); // or it would be unknown
            next = last_id + (FAULT == replay_late);
            next = next - (FAULT == replay_early && next > 0);
            if
            :: next > end_[w] && FAULT == ahead_unknown -> pending = true; next = 0
            :: next > end_[w] && FAULT == ahead_clamped -> next = end_[w]
            :: next < fanned[w] && FAULT == replay_settled -> next = fanned[w]
            :: else
            fi
        fi;
        if
        :: FAULT == replay_left -> busy = false
        :: FAULT == replay_left_in_pass && next >= fanned[w] -> busy = false
        :: else
        fi
    fi;
    told = next;
    fresh = next < tail;
    from_oldest = false
}

// feed::heartbeat(): a stream that is not busy has had everything that was offered.
#define heartbeat_id(w) \
    (FAULT == heartbeat_back -> fanned[w] : \
     (FAULT == heartbeat_over_pass -> most(next, planned[w]) : most(next, fanned[w])))

// ---- workers ------------------------------------------------------------------------------------

#define no_streams(w) (w == 1 && at != w) // the first worker always has other streams as well

#define handed_over(w) (slot[end_[w] % RING] == end_[w] + 1) // broadcast_ring::try_read()

// worker::pull(), feed::pull(), frame_log::trim().
inline drain(w) {
    do
    :: d_step {
        took < RING && handed_over(w) ->
        kept[w] = kept[w] & ~(end_[w] % 2 == 1 && wants(epoch, end_[w]) -> 1 << (end_[w] - 1) : 0);
        end_[w]++;
        took++
       }
    :: d_step {
        !(took < RING && handed_over(w)) ->
        do
        :: end_[w] - begin[w] > HISTORY && begin[w] < keep(w) -> forget_first(w)
        :: else -> break
        od;
        check_hold(w)
       };
       break
    od
}

// feed::plan(), feed::plan_jobs().
inline plan_jobs(w) {
    fanned[w] = planned[w];
    late = late && at != w;
    do
    :: planned[w] < end_[w] ->
        job[w] = job[w] || (wants(epoch, planned[w]) && (at == w || !no_streams(w)));
        planned[w]++
    :: else -> break
    od;
    took = 0
}

// worker::plan(): starts a pass over what is new, or sleeps.
inline plan(w) {
    d_step { fanned[w] = planned[w]; fanning[w] = true };
    if
    :: no_streams(w) ->
        drain(w);
        took = 0;
        if
        :: end_[w] != tail && FAULT != claimed_ignored ->
            awake[w] = false; // nobody else would wake us once it is filled
            drain(w);
            took = 0
        :: else
        fi;
        d_step { planned[w] = end_[w]; fanned[w] = end_[w]; fanning[w] = false }
    :: else ->
        if
        :: planned[w] == end_[w] -> drain(w)
        :: else
        fi;
        if
        :: planned[w] == end_[w] ->
            awake[w] = false; // first lie down, then look once more
            if
            :: FAULT != no_second_look -> drain(w)
            :: else
            fi;
            if
            :: took > 0 -> awake[w] = true
            :: else -> fanning[w] = false
            fi
        :: else
        fi;
        d_step { plan_jobs(w) }
    fi
}

proctype worker(byte w) {
    byte took, scan;
    bool from_oldest;
end:
    do
    // Somebody woke it. A turn that meets a pass does nothing: the pass looks again at its end.
    :: d_step { posted[w] && fanning[w] -> posted[w] = false }
    :: one_event {
        d_step { posted[w] && !fanning[w] -> posted[w] = false; inside++ };
        plan(w);
        inside--
       }
    // worker::fan_out(), feed::work(), slice by slice. Who came within the pass may be passed over.
    :: d_step { fanning[w] && job[w] -> deliver(w); job[w] = false }
    :: d_step { fanning[w] && job[w] && late && at == w -> job[w] = false }
    :: one_event {
        d_step { fanning[w] && !job[w] -> inside++ };
        plan(w);
        inside--
       }
    // receiver::await_writable(), receiver::yield().
    :: d_step { at == w && busy && room_left -> flush(w) }
    // worker::subscribe(), of whoever connects.
    :: one_event {
        d_step {
            link == seeking ->
            link = accepted;
            inside++
        };
        if
        :: OLDEST && last_id == unset -> d_step { from_oldest = true; asked = 0 }
        :: skip
        fi;
        if
        :: no_streams(w) && !fanning[w] -> // worker::be_woken()
            awake[w] = false;
            drain(w);
            took = 0;
            d_step { planned[w] = end_[w]; fanned[w] = end_[w] }
        :: else
        fi;
        d_step { subscribe(w); inside-- }
       }
    // worker::keep_alive(), when it has something to say.
    :: d_step {
        at == w && room_left && told != heartbeat_id(w) && (!busy || FAULT == heartbeat_behind) &&
        (held == 0 || FAULT == held_ignored) ->
        scan = heartbeat_id(w);
        next = most(next, fanned[w]); // feed::settle()
        write(id, scan, 0, 0);
        primed = true;
        scan = 0
       }
    // feed::end_if_lagged(): options::timeouts.stall is over, or it is lapped and ends anyway.
    :: d_step {
        at == w &&
        (holding[w] || (POLICY == disconnect && busy && held == 0 && !fresh && lost(w))) ->
        leave();
        link = closed
       }
    // worker::make_room(): a handler finds no room.
    :: one_event {
        d_step { HANDLER && tail - slowest == RING && handed_over(w) -> inside++ };
        drain(w);
        took = 0;
        d_step { posted[w] = true; inside-- }
       }
    // feed::forget(), in the sweep.
    :: d_step { AGE && begin[w] < keep(w) -> forget_first(w) }
    // The program's coroutine: reads and sends a snapshot, then stream::resume().
    :: d_step {
        at == w && held == 1 && !busy && room_left ->
        scan = (FAULT == snapshot_first -> asked : tail);
        wire!snapshot(scan, 0, 0);
        held = 2;
        scan = 0
       }
    :: d_step { at == w && held == 2 && room_left -> held = 0; flush(w) }
    od
}

// ---- client and judge ---------------------------------------------------------------------------

inline seek() {
    link = seeking;
    asked = (last_id == unset -> tail : 0);
    if
    :: last_id == unset && FAULT != no_first_id -> // it begins anew: with all, or what is new
        upto = (HELD -> 0 : unset);
        upto_epoch = epoch
    :: else
    fi
}

#define had (last_id == unset || last_id_epoch != wire_epoch -> 0 : last_id)

// What an event says, and whether it may.
inline judge() {
    if
    :: what == message ->
        assert(upto != unset && upto_epoch == wire_epoch);
        assert(n > had);
        assert(FAULT != snapshot_exact || n > seen);
        do
        :: upto + 1 < n ->
            assert(!wants(wire_epoch, upto) ||
                   (POLICY == conflate && superseded(wire_epoch, upto, tail)));
            upto++
        :: else -> break
        od
    :: what == id || what == head ->
        assert(n >= asked && n >= had);
        if
        :: upto == unset -> upto = most(n, to); upto_epoch = wire_epoch
        :: else -> assert(upto_epoch == wire_epoch && nothing_between(wire_epoch, upto, n))
        fi;
        asked = 0
    :: what == gap ->
        if
        :: upto == unset -> // lapped before its first id
            assert(from >= asked && from < to);
            upto = to;
            upto_epoch = wire_epoch;
            asked = 0
        :: upto != unset && upto_epoch == wire_epoch ->
            assert(had <= from && from < to && n >= had);
            assert(nothing_between(wire_epoch, upto, from));
            upto = most(upto, to)
        :: upto != unset && upto_epoch != wire_epoch ->
            assert(last_id == from);
            upto = to;
            upto_epoch = wire_epoch
        fi
    :: what == snapshot -> // of all that was published when it was read
        upto = (upto_epoch == wire_epoch && upto != unset -> most(upto, n) : n);
        upto_epoch = wire_epoch;
        seen = (FAULT == snapshot_exact -> n : 0)
    fi;
    if
    :: what == snapshot || what == head -> skip
    :: else ->
        upto = most(upto, n);
        last_id = n;
        last_id_epoch = wire_epoch
    fi
}

inline forget() { what = 0; n = 0; from = 0; to = 0 }

proctype client() {
    mtype what;
    byte n, from, to;
    if
    :: d_step { seek() }
    :: d_step { // it has read the state over plain HTTP, and server::last_id() before
        last_id = tail;
        last_id_epoch = epoch;
        upto = last_id;
        upto_epoch = epoch;
        seek()
       }
    fi;
end:
    do
    :: d_step { wire?what(n, from, to) -> judge(); forget() }
    :: d_step { link == closed && len(wire) == 0 -> seek() }
    :: d_step { // what is on its way is lost with the connection
        cuts > 0 && (link == open || link == closed) ->
        cuts--;
        do
        :: len(wire) > 0 -> wire?what(n, from, to)
        :: else -> break
        od;
        forget();
        leave();
        seek()
       }
    od
}

// ---- the rest -----------------------------------------------------------------------------------

// server::stop(), and another one in its place. What the first has sent may still arrive.
proctype restart() {
    byte i;
    d_step {
        inside == 0 ->
        leave();
        epoch = 1;
        tail = 0;
        asked = 0;
        do
        :: i < RING -> slot[i] = 0; i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < 2 ->
            awake[i] = true; posted[i] = false; fanning[i] = false; job[i] = false; begin[i] = 0;
            end_[i] = 0; kept[i] = 0; forgotten[i] = 0; fanned[i] = 0; planned[i] = 0;
            holding[i] = false;
            i++
        :: else -> break
        od;
        if
        :: link == open -> link = closed
        :: else
        fi;
        i = 0
    }
}

// Nothing can happen any more.
proctype rest() {
    timeout ->
    d_step {
        assert(left == 0 && inside == 0);
        assert(link == open && upto != unset && upto_epoch == epoch);
        assert(upto <= tail && nothing_between(epoch, upto, tail))
    }
}

init {
    atomic {
        run publisher();
        run publisher();
#ifdef ONLY
        run worker(ONLY);
#else
        run worker(0);
        run worker(1);
#endif
        run client();
        if
        :: RESTART -> run restart()
        :: else
        fi;
        run rest()
    }
}
