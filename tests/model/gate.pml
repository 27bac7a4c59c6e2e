/* A model of the ready gate and of draining: what the daemon does in
 * plugin_callback.c, with the gate in plugin_record.c, and in drain_plugin() and
 * stop_plugin() in plugin_lifecycle.c. Names are those of the C code. ci/model
 * explores it exhaustively; README.md says what is left out.
 *
 * Memory: a worker's stores go through a buffer, which reaches memory in order
 * but at any time later. The other processes' stores are sequentially
 * consistent in C, too. */

/* How much there is of everything, as ci/model wants it. */
#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef WALKS /* of the list, by each worker */
#define WALKS 1
#endif
#ifndef DEPTH /* 2: callbacks dispatch something themselves */
#define DEPTH 1
#endif
#define PENDING 6 /* stores in a buffer; further ones wait */
#define ARRAYS 12

/* Callbacks. A number is an address that is not used again. */
#define WRITE 1     /* of the plugin that is unloaded */
#define OTHER 2     /* of another plugin, in the same list */
#define NESTED 3    /* of the unloaded plugin, called while those two run */
#define LATE 4      /* registered by a thread of the plugin */
#define OTHER_NEW 5 /* replaces OTHER */
#define WRITE_NEW 6 /* registered when the plugin is loaded again */
#define CALLBACKS 6

#define BIT(c) (1 << (c))
/* All of the plugin before it is loaded again. */
#define PLUGINS (BIT(WRITE) | BIT(NESTED) | BIT(LATE))
#define GATED(c) (BIT(c) & (PLUGINS | BIT(WRITE_NEW)))

/* --- memory ---------------------------------------------------------------- */

/* Arrays are numbered as they are made, for the assertions. The program sees
 * addresses, which are used again. Zero is NULL. */
byte arrays_made;
byte content[ARRAYS];
byte address[ARRAYS];
bool address_used[ARRAYS];

/* One for each depth of calls. */
byte list[DEPTH];

bool gate;                /* of the plugin that is unloaded */
bool kind[CALLBACKS + 1]; /* cf_kind is not zero */

/* The frames, as others see them. */
#define ARRAY 0
#define CF 1
#define SLOTS (2 * DEPTH)
#define FRAMES (WORKERS * SLOTS)
byte frames[FRAMES];
chan pending[WORKERS] = [PENDING] of { byte, byte };
bool in_use[WORKERS];

bool callbacks_lock;
bool threads_lock;

/* Protected by callbacks_lock. */
bool retired_array[ARRAYS];
bool retired[CALLBACKS + 1];
bool releasing[CALLBACKS + 1];
bool released[CALLBACKS + 1];
byte cf_arrays[CALLBACKS + 1];
byte cf_batch[CALLBACKS + 1];
byte last_batch;

bool thread_ended; /* the plugin's own thread */

/* --- for the assertions ---------------------------------------------------- */

bool array_freed[ARRAYS];
bool cf_freed[CALLBACKS + 1];
bool data_freed[CALLBACKS + 1]; /* free_func has been called */
bool drained[CALLBACKS + 1];
bool unmapped[CALLBACKS + 1]; /* the code, that of the free_func included */
byte running[CALLBACKS + 1];

/* --- barriers and locks ---------------------------------------------------- */

inline lock(l) {
  atomic {
    !l;
    l = true
  }
}

/* Empties the buffer of one worker. */
inline empty_buffer(n) {
  atomic {
    do
    :: pending[n] ? s, v -> frames[(n) * SLOTS + s] = v
    :: empty(pending[n]) -> break
    od;
    s = 0;
    v = 0
  }
}

/* membarrier(2) has each processor pass a barrier, one after the other.
 * Without it, the worker's stores that matter are barriers themselves. */
inline frames_barrier() {
#if defined(FENCES) || defined(NO_BARRIER)
  skip
#else
  b = 0;
  do
  :: b < WORKERS ->
     empty_buffer(b);
     b++
  :: else -> break
  od;
  b = 0
#endif
}

/* What is in a worker's buffer reaches memory sooner or later. */
proctype Buffer(byte w) {
  byte s, v;
end:
  do
  :: atomic {
       pending[w] ? s, v;
       frames[w * SLOTS + s] = v;
       s = 0;
       v = 0
     }
  od
}

/* --- frames, looked at by others ------------------------------------------- */

/* Sets "found" if a frame shows "what" in its array or its callback. */
inline frames_show(slot, what) {
  lock(threads_lock);
  found = false;
  f = slot;
  do
  :: atomic {
       f < FRAMES;
       found = found || (in_use[f / SLOTS] && frames[f] == what);
       f = f + 2
     }
  :: f >= FRAMES -> break
  od;
  f = 0;
  threads_lock = false
}

/* Sets "found" if a callback of the plugin is running. */
inline callback_running() {
  lock(callbacks_lock);
  frames_barrier();
  lock(threads_lock);
  found = false;
  f = CF;
  do
  :: atomic {
       f < FRAMES;
       x = (in_use[f / SLOTS] -> frames[f] : 0);
       f = f + 2
     }
     atomic {
       assert(!cf_freed[x]); /* cf_owner */
       found = found || GATED(x);
       x = 0
     }
  :: f >= FRAMES -> break
  od;
  f = 0;
  threads_lock = false;
  callbacks_lock = false
}

/* --- lists ----------------------------------------------------------------- */

/* Must hold callbacks_lock, as must the next one. */
inline list_publish(l, what) {
  d_step {
    arrays_made++;
    assert(arrays_made < ARRAYS);
    content[arrays_made] = what;
    x = 1;
    do
    :: address_used[x] -> x++
    :: else -> break
    od;
    address_used[x] = true;
    address[arrays_made] = x;

    x = 1;
    do
    :: x <= CALLBACKS ->
       if
       :: content[arrays_made] & BIT(x) -> cf_arrays[x]++
       :: else
       fi;
       x++
    :: else -> break
    od;

    x = list[l];
    if
    :: x -> retired_array[x] = true
    :: else
    fi;
    x = 0;
    /* An empty list is no array. */
    if
    :: content[arrays_made] -> list[l] = arrays_made
    :: else ->
       address_used[address[arrays_made]] = false;
       list[l] = 0
    fi
  }
}

inline callback_retire(c) {
  d_step {
#ifndef KIND_STAYS
    kind[c] = false;
#endif
    cf_batch[c] = last_batch;
    retired[c] = true
  }
}

inline set_released() {
  d_step {
    x = 1;
    do
    :: x <= CALLBACKS ->
       if
       :: ready & BIT(x) -> released[x] = true
       :: else
       fi;
       x++
    :: else -> break
    od;
    x = 0
  }
}

/* Frees what nobody uses any more; "batch" zero is all. */
inline reclaim(batch) {
  lock(callbacks_lock);
  frames_barrier();

  x = 0;
  do
  :: d_step {
       x++;
       do
       :: x <= arrays_made && !retired_array[x] -> x++
       :: else -> break
       od
     }
     if
     :: x > arrays_made -> break
     :: else
     fi;
     frames_show(ARRAY, address[x]);
     d_step {
       if
       :: found
       :: else ->
          array_freed[x] = true;
          retired_array[x] = false;
          address_used[address[x]] = false;
          f = 1;
          do
          :: f <= CALLBACKS ->
             if
             :: content[x] & BIT(f) -> cf_arrays[f]--
             :: else
             fi;
             f++
          :: else -> break
          od;
          f = 0
       fi;
       found = false
     }
  od;

  x = 0;
  do
  :: d_step {
       x++;
       do
       :: x <= CALLBACKS && !(retired[x] && !releasing[x] &&
                              (batch == 0 || cf_batch[x] == batch)) -> x++
       :: else -> break
       od
     }
     if
     :: x > CALLBACKS -> break
     :: else
     fi;
     frames_show(CF, x);
     d_step {
       if
       :: found
       :: else ->
#ifndef NOT_MARKED
          releasing[x] = true;
#endif
          ready = ready | BIT(x)
       fi;
       found = false
     }
  od;
  x = 0;
#ifdef RELEASED_BEFORE
  set_released();
#endif
  callbacks_lock = false;

  do
  :: d_step {
       x++;
       do
       :: x <= CALLBACKS && !(ready & BIT(x)) -> x++
       :: else -> break
       od
     }
     if
     :: x > CALLBACKS -> break
     :: else
     fi;
     /* The plugin's free_func. */
     atomic {
       assert(!running[x]);
       assert(!data_freed[x]);
       assert(!unmapped[x]);
       data_freed[x] = true
     }
     assert(!unmapped[x])
  od;
  x = 0;

  lock(callbacks_lock);
  set_released();
  ready = 0;
  d_step {
    x = 1;
    do
    :: x <= CALLBACKS ->
       if
#ifdef ARRAYS_FORGOTTEN
       :: retired[x] && released[x] ->
#else
       :: retired[x] && released[x] && cf_arrays[x] == 0 ->
#endif
          retired[x] = false;
          cf_freed[x] = true
       :: else
       fi;
       x++
    :: else -> break
    od;
    x = 0
  }
  callbacks_lock = false
}

/* Adds "c" to a list; "old" is the one that it replaces, or zero. */
inline callback_register(l, c, old) {
  lock(callbacks_lock);
  kind[c] = true;
  list_publish(l, (content[list[l]] | BIT(c)) & ~BIT(old));
  last_batch++;
  if
  :: old -> callback_retire(old)
  :: else
  fi;
  y = last_batch;
  callbacks_lock = false;
  reclaim(y);
  y = 0
}

/* Takes the callbacks in the mask "what" off a list. */
inline callback_unregister(l, what) {
  lock(callbacks_lock);
  if
  :: content[list[l]] & (what) ->
     y = content[list[l]] & (what);
     list_publish(l, content[list[l]] & ~(what));
     last_batch++;
     c = 1;
     do
     :: c <= CALLBACKS ->
        if
        :: y & BIT(c) -> callback_retire(c)
        :: else
        fi;
        c++
     :: else -> break
     od;
     c = 0;
     y = last_batch;
     callbacks_lock = false;
     reclaim(y);
     y = 0
  :: else -> callbacks_lock = false
  fi
}

/* --- those who call -------------------------------------------------------- */

#ifdef ONE_FRAME
#define FRAME(d) 0
#else
#define FRAME(d) (2 * (d))
#endif

inline frame_clear(d, slot) {
  pending[w] ! FRAME(d) + slot, 0
}

inline frame_write(d, slot, what) {
#ifdef FENCES
  atomic {
    empty(pending[w]);
    frames[w * SLOTS + FRAME(d) + slot] = what
  }
#else
  pending[w] ! FRAME(d) + slot, what
#endif
}

inline callback_iter_begin(d) {
  a[d] = list[d];
#ifdef LIST_READ_ONCE
  frame_write(d, ARRAY, address[a[d]]);
#else
  do
  :: frame_write(d, ARRAY, address[a[d]]);
     atomic {
       t = list[d];
       if
       :: address[t] == address[a[d]] ->
          /* Who has made another array at the same address has made the one
           * that is in force. */
          a[d] = t;
          t = 0;
          break
       :: else ->
          a[d] = t;
          t = 0
       fi
     }
  od
#endif
}

inline read_gate(d) {
  atomic {
    assert(!cf_freed[cf[d]]);
    k = kind[cf[d]]
  }
  atomic {
    assert(!cf_freed[cf[d]]);
    k = k && (gate || !GATED(cf[d]))
  }
}

/* Sets cf[d] to the next callback that may be called, or to zero. */
inline callback_iter_next(d) {
  do
  :: atomic {
       assert(!array_freed[a[d]]);
       cf[d] = 0;
       do
       :: !cf[d] && i[d] < CALLBACKS ->
          i[d]++;
          if
          :: content[a[d]] & BIT(i[d]) -> cf[d] = i[d]
          :: else
          fi
       :: else -> break
       od
     }
     if
     :: !cf[d] -> break
     :: else
     fi;
#ifdef GATE_READ_BEFORE
     read_gate(d);
     frame_write(d, CF, cf[d]);
#else
     frame_write(d, CF, cf[d]);
     read_gate(d);
#endif
     if
     :: k -> break
     :: else -> frame_clear(d, CF)
     fi
  od;
  k = false
}

inline callback_iter_end(d) {
  frame_clear(d, CF);
  frame_clear(d, ARRAY);
  i[d] = 0
}

#define MAY_RUN(c) (!drained[c] && !unmapped[c] && !data_freed[c])

inline call_begins(c) {
  atomic {
    assert(MAY_RUN(c));
    running[c]++
  }
}

inline call_ends(c) {
  atomic {
    assert(MAY_RUN(c));
    running[c]--
  }
}

/* A thread that dispatches values. */
proctype Worker(byte w) {
  byte a[DEPTH], i[DEPTH], cf[DEPTH];
  byte n, t;
  bool k;

  /* thread_register() */
  atomic {
    !threads_lock;
    in_use[w] = true
  }

  do
  :: n < WALKS ->
     callback_iter_begin(0);
     do
     :: callback_iter_next(0);
        if
        :: !cf[0] -> break
        :: else
        fi;
#ifdef CLEARED_BEFORE_CALL
        frame_clear(0, CF);
#endif
        call_begins(cf[0]);
#if DEPTH > 1
        if
        :: callback_iter_begin(1);
           do
           :: callback_iter_next(1);
              if
              :: !cf[1] -> break
              :: else
              fi;
              call_begins(cf[1]);
              call_ends(cf[1])
           od;
           callback_iter_end(1)
        :: skip
        fi;
#endif
        call_ends(cf[0])
     od;
     callback_iter_end(0);
     n++
  :: else -> break
  od
}

/* --- those who change ------------------------------------------------------ */

/* plugin_unregister_owner(). callback_retired() takes the lock, too. */
inline sweep() {
  callback_unregister(0, PLUGINS);
#if DEPTH > 1
  callback_unregister(1, PLUGINS);
#endif
  do
  :: atomic {
       !callbacks_lock;
       if
       :: (retired[WRITE] && !released[WRITE]) ||
          (retired[NESTED] && !released[NESTED]) ||
          (retired[LATE] && !released[LATE])
       :: else -> break
       fi
     }
     reclaim(0)
  od
}

/* UNLOADPLUGIN, and then perhaps LOADPLUGIN. */
proctype Lifecycle() {
  byte b, c, f, ready, s, v, x, y;
  bool found;

  /* drain_plugin() */
again:
#ifdef CLOSED_AFTER_LOOK
  callback_running();
  gate = false;
#else
  gate = false;
  do
  :: callback_running();
     if
     :: !found -> break
     :: found /* Looks again: plugin_poll(). */
     :: found -> /* It is busy: the deadline is over. */
#ifndef GATE_STAYS_CLOSED
        gate = true;
#endif
        found = false;
        if
        :: goto ready_again
        :: goto again
        fi
     fi
  od;
#endif
  found = false;
  d_step {
    assert(!running[WRITE] && !running[NESTED] && !running[LATE]);
    drained[WRITE] = true;
    drained[NESTED] = true;
    drained[LATE] = true
  }

  /* stop_plugin() */
  sweep();
  thread_ended;
#ifndef SWEPT_ONCE
  sweep();
#endif
  c = 0;
  d_step {
    assert(!(content[list[0]] & PLUGINS));
    assert(!(content[list[DEPTH - 1]] & PLUGINS));
    assert(!retired[WRITE] || data_freed[WRITE]);
    assert(!retired[NESTED] || data_freed[NESTED]);
    assert(!retired[LATE] || data_freed[LATE]);
    unmapped[WRITE] = true;
    unmapped[NESTED] = true;
    unmapped[LATE] = true
  }

#ifdef RELOAD
  callback_register(0, WRITE_NEW, 0);
  gate = true;
  assert(content[list[0]] & BIT(WRITE_NEW))
#endif
  goto done;

ready_again:
  assert(gate && kind[WRITE] && (content[list[0]] & BIT(WRITE)));

done:
  skip
}

#ifdef THREAD
/* A thread of the plugin, which registers something at any time. */
proctype Thread() {
  byte b, f, ready, s, v, x, y;
  bool found;

  callback_register(0, LATE, 0);
  thread_ended = true
}
#endif

#ifdef OTHERS
/* Another plugin, which registers its callback anew. */
proctype Other() {
  byte b, f, ready, s, v, x, y;
  bool found;

  callback_register(0, OTHER_NEW, OTHER)
}
#endif

#ifdef RECLAIM
/* A read thread, which frees what it finds. */
proctype Reader() {
  byte b, f, ready, s, v, x;
  bool found;

  reclaim(0)
}
#endif

init {
  byte x;

  atomic {
    list_publish(0, BIT(WRITE) | BIT(OTHER));
    kind[WRITE] = true;
    kind[OTHER] = true;
#if DEPTH > 1
    list_publish(1, BIT(NESTED));
    kind[NESTED] = true;
#endif
    gate = true;

    x = 0;
    do
    :: x < WORKERS ->
       run Worker(x);
       run Buffer(x);
       x++
    :: else -> break
    od;
    x = 0;
    run Lifecycle();
#ifdef THREAD
    run Thread();
#else
    thread_ended = true;
#endif
#ifdef OTHERS
    run Other();
#endif
#ifdef RECLAIM
    run Reader();
#endif
    skip
  }
}
