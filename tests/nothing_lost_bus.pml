// nothing_lost_bus.pml - a model, for the model checker Spin, of the promise that nothing is lost
// without a word, where a bus orders the messages of two servers. tests/model.sh checks every
// interleaving of it, in several configurations. How one server sends its log is in
// nothing_lost.pml; here a server reads, keeps and sends one message at a time.
//
// A bus; publishers, one of whom may repeat what the bus has already stored; two servers that read
// the bus, each as late as it likes; a client that is cut, and comes back to either with its last
// event id. The bus may lose the end of what it stored, may drop the oldest before a server has
// read them, and a server may start anew. Each part names what it stands for in sse.hpp.
//
// An id is an epoch and a number, in one byte. A number that was given is not given again, also
// not after a loss, as long as no server has noticed: see >>redis, "forward by a day".
//
// The judge knows what the bus has in its order. It objects as soon as
//   - a number of an epoch is given to two messages
//   - a message comes out of order, or comes again, though the bus did not lose the first
//   - a message or an id comes, and one before it in the bus's order was neither received nor
//     named by a gap
//   - a message or an id of another epoch comes without a gap
// When nothing can happen any more, both servers must have read all, and the client must have been
// told of all: it waits for nothing that will never come.
//
// Bounds: 2 or 3 messages, one loss of any length, one trim of any length, one start, one repeat,
// one or two cuts, a history of one to three. 3,000 to 1,000,000 states a run.
//
// What it leaves out: a bus in which a message is stored twice so far apart that the history of a
// server begins between the two. Its tokens are not older than its history, so it would send the
// second to a client that had the first from another server; `split` shows that.
//
// spin -a -DNAME=VALUE...
//   MESSAGES  published in all (3)            CUTS     times the connection is lost, at most (1)
//   HISTORY   options.history (2)             REPEATS  publishes whose reply is lost (0)
//   LOSSES    1: the bus may lose its end     TRIMS    1: it may drop its oldest
//   STARTS    1: a server may start anew      KEPT     1: the topic has a history of its own
//   FAULT     one of those below, which the judge must find
#ifndef MESSAGES
#define MESSAGES 3
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef HISTORY
#define HISTORY 2
#endif
#ifndef REPEATS
#define REPEATS 0
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef TRIMS
#define TRIMS 0
#endif
#ifndef STARTS
#define STARTS 0
#endif
#ifndef KEPT
#define KEPT 0
#endif
#ifndef FAULT
#define FAULT none
#endif

// Planted faults.
#define none 0
#define numbers_reused 1      // after a loss numbers go on from what is left
#define name_reused 2         // a new epoch has the name of the old one
#define no_compare 3          // each server that notices a loss begins the new epoch
#define loss_untold 4         // the mark of a new epoch does not say that messages may be lost
#define no_token 5            // what is stored twice is not noticed
#define lost_token_kept 6     // ... is taken for that although the bus lost the first
#define split 7               // ... with the beginning of a server's history between the two
#define hole_untold 8         // what the bus dropped is passed over
#define hole_too_short 9      // a hole does not name the last that is missing
#define ahead_clamped 10      // an id that this server has not reached counts as the end of its log
#define ahead_unknown 11      // ... as unknown, at once
#define newer_epoch_unknown 12 // an id of an epoch that this server has not reached: the same
#define waits_for_ever 13     // whoever is ahead waits, whether the message exists or not
#define epoch_ignored 14      // an id is taken for one of the newest epoch
#define asks_too_soon 15      // ... until the bus has no such message, wherever this server is
#define mark_walked_over 16   // the place of an id that is not known exactly goes past its epoch
#define id_too_old 17         // the id of a position that is not known exactly is its era's first
#define forgotten_untold 18   // what the log has forgotten is passed over
#define asks_for_it_alone 19  // who is ahead waits only for as long as that message is stored

#define most(a, b) ((a) > (b) -> (a) : (b))

#define PLACES (MESSAGES + REPEATS + 1)
#define LOG (MESSAGES + REPEATS + 4)
#define unset 255

// An id, or a mark: `epoch * 8 + number`.
#define epoch_of(id) ((id) >> 3)
#define number_of(id) ((id) & 7)
#define bit_of(n) (1 << (n))
#define has(set, n) (((set) >> (n)) & 1)

// ---- the bus ------------------------------------------------------------------------------------

byte order[PLACES];   // ids of what is stored, and of marks: those have number 0
byte dropped;         // places before this are trimmed
byte tail;            // places before this are stored
byte message_of[16];  // by id: message + 1
int stays;            // ids that are in the order, also if they are trimmed since
byte epoch;           // the newest
byte given;           // the highest number in it that was ever given
byte left = MESSAGES; // to be published
byte repeats = REPEATS, losses = LOSSES, trims = TRIMS, starts = STARTS, cuts = CUTS;
byte read[2];         // by each server: places before this
bool lost[2];         // the last that it has read is lost, which it will notice
byte again;           // message + 1, whose reply was lost: its publisher will repeat it

hidden byte new_id, i, j; // within one step

inline append(m) {
    if
    :: FAULT == numbers_reused ->
        given = (tail > 0 && epoch_of(order[tail - 1]) == epoch -> number_of(order[tail - 1]) : 0)
    :: else
    fi;
    given++;
    new_id = epoch * 8 + given;
    assert(message_of[new_id] == 0); // no number stands for two messages
    message_of[new_id] = m + 1;
    stays = stays | bit_of(new_id);
    order[tail] = new_id;
    tail++
}

// Compare and set: unless another server has done so.
inline begin_epoch(seen_epoch) {
    if
    :: epoch != seen_epoch && FAULT != no_compare -> skip
    :: else ->
        epoch = (FAULT == name_reused -> 0 : 1);
        given = 0;
        order[tail] = epoch * 8;
        tail++
    fi
}

// Whether a message is stored, or will be, on both sides of this place.
inline look_for_split(place) {
    is_split = false;
    i = 0;
    do
    :: i < place && FAULT != split ->
        j = place;
        do
        :: j < tail && message_of[order[i]] != 0 ->
            is_split = is_split || message_of[order[i]] == message_of[order[j]];
            j++
        :: else -> break
        od;
        is_split = is_split || (again != 0 && message_of[order[i]] == again);
        i++
    :: else -> break
    od;
    i = 0;
    j = 0
}

proctype bus() {
    bool is_split;
    byte place;
end:
    do
    // publish(). Who gets no reply repeats it.
    :: d_step { left > 0 -> append(MESSAGES - left); left-- }
    :: d_step {
        left > 0 && repeats > 0 && again == 0 ->
        again = MESSAGES - left + 1;
        append(MESSAGES - left);
        left--;
        repeats--
       }
    :: d_step { again != 0 -> append(again - 1); again = 0 }
    // It loses its end, perhaps all of it.
    :: d_step {
        losses > 0 && tail > dropped && number_of(order[tail - 1]) != 0 ->
        losses--;
        do
        :: tail > dropped && number_of(order[tail - 1]) != 0 ->
            tail--;
            stays = stays & ~bit_of(order[tail])
        :: break
        od;
        i = 0;
        do
        :: i < 2 ->
            if
            :: read[i] > tail -> read[i] = tail; lost[i] = true // what is still there
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
       }
    // It drops its oldest.
    :: d_step {
        trims > 0 && tail > dropped ->
        trims--;
        place = dropped + 1;
        do
        :: place < tail -> place++
        :: break
        od;
        look_for_split(place);
        dropped = (is_split -> dropped : place);
        place = 0;
        is_split = false
       }
    od
}

// ---- each server: >>relay, >>log, >>ids ---------------------------------------------------------

#define is_mark 32
#define is_loss 64    // frame::is_loss()

byte log[2 * LOG];    // what came: ids, some of them marks
byte begin[2];        // frame_log::begin()
byte end_[2] = 1;     // frame_log::end(): the first is the mark of epoch 0
byte forgotten[2];    // of the client's topic
byte seen[2];         // seen_tokens: messages
byte newest[2];       // relay::epoch_, relay::last_
bool ready[2] = true; // feed::is_ready_

#define at_place(w, p) log[(w) * LOG + (p)]
#define id_there(w, p) (at_place(w, p) & 31)

// id_book::append(), frame_log::trim(), feed::forgot().
inline push(w, what) {
    at_place(w, end_[w]) = what;
    end_[w]++;
    do
    :: end_[w] - begin[w] > HISTORY ->
        if
        :: (at_place(w, begin[w]) & is_loss) || (!KEPT && !(at_place(w, begin[w]) & is_mark)) ->
            forgotten[w] = begin[w] + 1
        :: else
        fi;
        begin[w]++
    :: else -> break
    od
}

// id_book::first_: from here on it knows numbers.
#define first(w) (begin[w] > 0 -> begin[w] - 1 : 0)

// id_book::era_of(), for a position after the first mark.
inline look_for_era(w, position) {
    i = (position > 0 -> position - 1 : 0);
    do
    :: !(at_place(w, i) & is_mark) -> i--
    :: else -> break
    od
}

// id_book::id_at(). Where numbers are not known any more, the first of the era.
inline set_id_at(w, position) {
    if
    :: position > first(w) -> new_id = id_there(w, (position > 0 -> position - 1 : 0))
    :: else ->
        look_for_era(w, position);
        new_id = id_there(w, i);
        i = 0
    fi
}

// ---- the client's stream, on the server that serves it: receiver --------------------------------

#define nobody 2
byte at = nobody;
byte next;            // receiver::next_
bool waiting;         // held by_bus: its position is not known yet
bool gave_up;         // receiver::gave_up
bool primed;          // receiver::has_id_
bool fresh;           // receiver::starts_in_past_
byte reported;        // receiver::reported_before
byte came_with;       // the id that its position stands for, until it has received something

mtype = { no_gap, of_start, of_mark };
mtype pending = no_gap; // receiver::pending

mtype = { id, message, gap };
chan wire = [1] of { mtype, byte, byte }; // what; its id; up to where a gap says messages may miss

mtype = { seeking, open, closed };
mtype link = closed;
byte last_id = unset; // what it comes back with

inline leave() {
    at = nobody;
    next = 0;
    waiting = false;
    gave_up = false;
    primed = false;
    fresh = false;
    reported = 0;
    came_with = 0;
    pending = no_gap
}

mtype = { known, vague, ahead, too_old, other_epoch };
hidden mtype state;
hidden byte position, end_of_era, from;

// id_book::find(). A hole begins another era of the same epoch.
inline find(w, which) {
    state = other_epoch;
    position = 0;
    end_of_era = end_[w];
    i = end_[w];
    do
    :: i > 0 ->
        i--;
        if
        :: !(at_place(w, i) & is_mark) -> skip
        :: (at_place(w, i) & is_mark) && epoch_of(id_there(w, i)) == epoch_of(which) &&
           id_there(w, i) <= which ->
            find_in(w, which);
            break
        :: (at_place(w, i) & is_mark) && epoch_of(id_there(w, i)) == epoch_of(which) &&
           id_there(w, i) > which ->
            state = too_old;
            position = i + 1;
            end_of_era = i
        :: (at_place(w, i) & is_mark) && epoch_of(id_there(w, i)) != epoch_of(which) ->
            end_of_era = i
        fi
    :: else -> break
    od;
    i = 0
}

// id_book::find_in(), of the era whose mark is at `i`, then feed::position_after().
inline find_in(w, which) {
    state = known;
    position = i + 1;
    from = most(i + 1, first(w));
    if
    :: which == id_there(w, i) -> skip
    :: which != id_there(w, i) && from < end_of_era && which < id_there(w, from) ->
        state = (from == i + 1 -> known : vague)
    :: which != id_there(w, i) && end_of_era == end_[w] &&
       (from >= end_of_era || which > id_there(w, end_of_era - 1)) &&
       !(from < end_of_era && which < id_there(w, from)) ->
        state = ahead;
        position = end_of_era
    :: else ->
        if
        :: from >= end_of_era ->
            if
            :: first(w) > i + 1 -> state = vague
            :: else -> position = end_of_era
            fi
        :: else ->
            position = from;
            do
            :: position < end_of_era && id_there(w, position) <= which -> position++
            :: else -> break
            od
        fi
    fi;
    from = 0;
    if
    :: state == vague -> walk(w, which)
    :: else
    fi
}

#define is_kept(w, p) ((p) >= begin[w] || (KEPT && !(at_place(w, p) & is_mark)))

inline walk(w, which) {
    j = position;
    do
    :: j < end_[w] && !is_kept(w, j) -> j++
    :: j < end_[w] && is_kept(w, j) &&
       (FAULT == mark_walked_over -> number_of(id_there(w, j)) <= number_of(which)
                                   : j < end_of_era && id_there(w, j) <= which) ->
        j++;
        position = j
    :: else -> break
    od;
    j = 0
}

// feed::place(), feed::position_of_id(). An id of another epoch may be one that is still to come.
inline place(w) {
    waiting = true;
    if
    :: !ready[w] -> skip
    :: ready[w] && last_id == unset ->
        next = end_[w];
        set_id_at(w, next);
        came_with = new_id;
        waiting = false
    :: ready[w] && last_id != unset ->
        new_id = (FAULT == epoch_ignored -> epoch_of(newest[w]) * 8 + number_of(last_id) : last_id);
        find(w, new_id);
        if
        :: state == ahead && FAULT == ahead_clamped -> state = known
        :: else
        fi;
        if
        :: state == known || state == vague -> waiting = false; came_with = last_id
        :: state == too_old -> waiting = false; pending = of_start
        :: (state == ahead && (gave_up || FAULT == ahead_unknown)) ||
           (state == other_epoch && (gave_up || FAULT == newer_epoch_unknown)) ->
            waiting = false;
            pending = of_start
        :: else
        fi;
        if
        :: !waiting -> next = position; fresh = next < end_[w]
        :: else
        fi;
        position = 0;
        end_of_era = 0;
        state = known
    fi
}

// feed::missing().
#define is_missing(w) (forgotten[w] > next && forgotten[w] > reported && FAULT != forgotten_untold)

// Of its position. An id that it came back with is not exchanged for an older one.
inline set_own_id(w) {
    if
    :: came_with != 0 && FAULT != id_too_old -> new_id = came_with
    :: else -> set_id_at(w, next)
    fi
}

// feed::gather(), feed::announce(), feed::meet_loss(): the next thing that it is sent.
inline flush(w) {
    if
    :: !primed && !(pending != no_gap || (fresh && is_missing(w))) ->
        set_own_id(w);
        wire!id(new_id, 0);
        primed = true
    :: pending != no_gap || (fresh && is_missing(w)) ->
        if
        :: pending == of_mark -> set_id_at(w, next); j = new_id
        :: else ->
            set_id_at(w, forgotten[w]);
            j = new_id;
            reported = forgotten[w];
            set_own_id(w)
        fi;
        wire!gap(new_id, most(j, new_id));
        pending = no_gap;
        primed = true;
        j = 0
    :: primed && pending == no_gap && !fresh && is_missing(w) -> // lag_policy::disconnect
        leave();
        link = closed
    :: primed && pending == no_gap && !is_missing(w) ->
        if
        :: !is_kept(w, next) -> skip
        :: is_kept(w, next) && (at_place(w, next) & is_loss) ->
            pending = of_mark;
            came_with = 0
        :: is_kept(w, next) && (at_place(w, next) & is_mark) && !(at_place(w, next) & is_loss)
        :: is_kept(w, next) && !(at_place(w, next) & is_mark) ->
            wire!message(id_there(w, next), 0);
            fresh = false;
            came_with = 0
        fi;
        next++
    fi
}

inline try_again(w) {
    if
    :: at == w && waiting -> place(w)
    :: else
    fi
}

#define is_stored(which) has(stays, which)
#define is_there(which) (is_stored(which) && (dropped == 0 || order[dropped - 1] < (which)))
#define may_come(which) (tail > 0 && order[tail - 1] >= (which))
#define mark_of_loss (FAULT == loss_untold -> is_mark : is_mark | is_loss)

proctype server(byte w) {
    bool is_split;
    byte where;
end:
    do
    // relay::message(), relay::epoch().
    :: d_step {
        !lost[w] && read[w] < tail && read[w] >= dropped ->
        new_id = order[read[w]];
        read[w]++;
        newest[w] = new_id;
        if
        :: number_of(new_id) == 0 -> push(w, new_id | mark_of_loss)
        :: number_of(new_id) != 0 && has(seen[w], message_of[new_id]) && FAULT != no_token
        :: else ->
            seen[w] = seen[w] | bit_of(message_of[new_id]);
            push(w, new_id)
        fi;
        new_id = 0;
        try_again(w)
       }
    // relay::hole(), or relay::epoch() with a number that it begins after.
    :: d_step {
        !lost[w] && read[w] < dropped ->
        read[w] = dropped;
        new_id = order[dropped - 1] - (FAULT == hole_too_short && number_of(order[dropped - 1]) > 1);
        newest[w] = new_id;
        if
        :: FAULT == hole_untold -> skip
        :: else -> push(w, new_id | is_mark | is_loss)
        fi;
        new_id = 0;
        try_again(w)
       }
    // It notices that the bus lost what it had read. What it had is not a token of what stays.
    :: d_step {
        lost[w] ->
        lost[w] = false;
        begin_epoch(epoch_of(newest[w]));
        i = 0;
        do
        :: i < read[w] && FAULT != lost_token_kept ->
            j = j | bit_of(message_of[order[i]]);
            i++
        :: else -> break
        od;
        seen[w] = (FAULT == lost_token_kept -> seen[w] : seen[w] & j);
        i = 0;
        j = 0
       }
    // It starts anew, with the newest of the history.
    :: d_step {
        starts > 0 ->
        where = (tail > dropped + HISTORY -> tail - HISTORY : dropped);
        look_for_split(where);
        if
        :: is_split
        :: else ->
            starts--;
            if
            :: at == w ->
                leave();
                link = closed
            :: else
            fi;
            i = 0;
            do
            :: i < LOG -> at_place(w, i) = 0; i++
            :: else -> break
            od;
            i = 0;
            begin[w] = 0;
            end_[w] = 1;
            forgotten[w] = 0;
            seen[w] = 0;
            lost[w] = false;
            ready[w] = false;
            read[w] = where;
            newest[w] = (where > 0 -> order[where - 1] : 0);
            at_place(w, 0) = newest[w] | is_mark
        fi;
        where = 0;
        is_split = false
       }
    // relay::ready().
    :: d_step { !ready[w] && !lost[w] && read[w] == tail -> ready[w] = true; try_again(w) }
    // worker::subscribe().
    :: d_step { link == seeking -> link = open; at = w; place(w); new_id = 0 }
    :: d_step {
        at == w && !waiting && len(wire) == 0 &&
        (!primed || pending != no_gap || is_missing(w) || next < end_[w]) ->
        flush(w);
        new_id = 0
       }
    // worker::ask_for_overdue(): this server has read all that the bus has, and the bus has nothing
    // from there on; or this server does not know the epoch.
    :: d_step {
        at == w && waiting && !gave_up && ready[w] && last_id != unset && !lost[w] &&
        FAULT != waits_for_ever &&
        (FAULT == asks_for_it_alone -> !is_there(last_id) :
         (read[w] == tail || FAULT == asks_too_soon) &&
         (!may_come(last_id) || epoch_of(last_id) != epoch_of(newest[w]))) ->
        gave_up = true;
        place(w);
        new_id = 0
       }
    od
}

// ---- client and judge ---------------------------------------------------------------------------

byte upto = unset;    // up to this id everything was received or announced
int received;         // ids
byte had;             // messages that were received or announced

inline expect_all(a, b) {
    i = a;
    do
    :: i < b -> assert(!is_stored(i) || has(had, message_of[i])); i++
    :: else -> break
    od;
    i = 0
}

inline announce(a, b) {
    i = a;
    do
    :: i <= b -> had = had | (message_of[i] != 0 -> bit_of(message_of[i]) : 0); i++
    :: else -> break
    od;
    i = 0
}

inline judge() {
    if
    :: what == message ->
        assert(upto != unset && epoch_of(upto) >= epoch_of(n));
        expect_all(upto + 1, n);
        i = 0;
        do
        :: i < 16 ->
            assert(!has(received, i) || !is_stored(i) ||
                   (i < n && message_of[i] != message_of[n]));
            i++
        :: else -> break
        od;
        i = 0;
        received = received | bit_of(n);
        had = had | bit_of(message_of[n])
    :: what == id && upto == unset -> announce(0, n)
    :: what == id && upto != unset ->
        assert(epoch_of(upto) >= epoch_of(n));
        expect_all(upto + 1, n + 1)
    :: what == gap ->
        announce(0, to)
    fi;
    upto = (upto == unset -> most(n, to) : most(upto, most(n, to)));
    last_id = n
}

proctype client() {
    mtype what;
    byte n, to;
    if
    :: d_step { link = seeking }
    :: d_step { // server::last_id()
        ready[0] ->
        last_id = newest[0];
        upto = newest[0];
        announce(0, upto);
        link = seeking
       }
    fi;
end:
    do
    :: d_step { wire?what(n, to) -> judge(); what = 0; n = 0; to = 0 }
    :: d_step { link == closed && len(wire) == 0 -> link = seeking }
    :: d_step { // what is on its way is lost with the connection
        cuts > 0 && link == open ->
        cuts--;
        if
        :: len(wire) > 0 -> wire?what(n, to); what = 0; n = 0; to = 0
        :: else
        fi;
        leave();
        if
        :: last_id == unset -> upto = unset // it begins anew
        :: else
        fi;
        link = seeking
       }
    od
}

// Nothing can happen any more.
proctype rest() {
    timeout ->
    d_step {
        assert(left == 0 && again == 0 && link == open && upto != unset);
        assert(read[0] == tail && read[1] == tail && !lost[0] && !lost[1]);
        assert(!waiting || may_come(last_id));
        expect_all(upto + 1, 16)
    }
}

init {
    atomic {
        at_place(0, 0) = is_mark;
        at_place(1, 0) = is_mark;
        run bus();
        run server(0);
        run server(1);
        run client();
        run rest()
    }
}
