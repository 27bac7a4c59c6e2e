/* A model of reading while a plugin is unloaded: what the daemon's
 * plugin_read_thread(), plugin_unregister_read() and plugin_remove_reads() in
 * plugin.c do with the one entry that the plugin has. The gate, the frames, the
 * barriers and the memory are as in gate.pml. */

#ifndef WORKERS
#define WORKERS 2
#endif
#define PENDING 4

/* The entry: in the heap, in the list, RF_REMOVE. Protected by read_lock. */
bool in_heap = true;
bool in_list = true;
bool to_remove;
bool read_lock;

byte reads = 1; /* of the plugin's record */
bool gate = true;

/* Whether a frame shows the entry. */
bool frames[WORKERS];
chan pending[WORKERS] = [PENDING] of { bool };

bool callbacks_lock;

/* For the assertions. */
bool freed;
bool data_freed;
bool drained;
bool unmapped;
byte running;

inline lock(l) {
  atomic {
    !l;
    l = true
  }
}

/* A processor that takes a lock passes a barrier. */
inline worker_lock(l) {
  atomic {
    empty(pending[w]) && !l;
    l = true
  }
}

inline frames_barrier() {
#if defined(FENCES) || defined(NO_BARRIER)
  skip
#else
  n = 0;
  do
  :: n < WORKERS ->
     atomic {
       do
       :: pending[n] ? v -> frames[n] = v
       :: empty(pending[n]) -> break
       od;
       v = false;
       n++
     }
  :: else -> break
  od;
  n = 0
#endif
}

proctype Buffer(byte w) {
  bool v;
end:
  do
  :: atomic {
       pending[w] ? v;
       frames[w] = v;
       v = false
     }
  od
}

inline frame_write() {
#ifdef FENCES
  atomic {
    empty(pending[w]);
    frames[w] = true
  }
#else
  pending[w] ! true
#endif
}

/* A worker that gets here has stored nothing since it took read_lock. */
inline destroy_read_func() {
#ifdef COUNTED_BEFORE
  reads = reads - 1;
#endif
  /* free_func() of the plugin */
  atomic {
    assert(!running && !data_freed && !unmapped);
    data_freed = true
  }
  assert(!unmapped);
#ifndef CLEANED_WITHOUT_LOCK
  lock(callbacks_lock);
  callbacks_lock = false;
#endif
  atomic {
    assert(!freed);
    freed = true
  }
#ifndef COUNTED_BEFORE
  reads = reads - 1;
#endif
  skip
}

/* plugin_read_thread() */
proctype Worker(byte w) {
  bool k;

end:
  do
  :: atomic {
       in_heap && !read_lock && empty(pending[w]);
       in_heap = false
     }
     atomic {
       !read_lock && empty(pending[w]);
       assert(!freed);
       k = to_remove
     }
     if
     :: k ->
        k = false;
        destroy_read_func()
     :: else ->
#ifdef GATE_READ_BEFORE
        k = gate;
        frame_write();
#else
        frame_write();
        k = gate;
#endif
        if
        :: k ->
           atomic {
             assert(!freed && !data_freed && !drained && !unmapped);
             running++
           }
           /* The callback may unregister itself. */
           if
           :: in_list ->
              worker_lock(read_lock);
              if
              :: in_list ->
                 in_list = false;
                 to_remove = true
              :: else
              fi;
              read_lock = false
           :: skip
           fi;
           atomic {
             assert(!freed && !data_freed && !drained && !unmapped);
             running--
           }
        :: else -> skip
        fi;
        k = false;
        pending[w] ! false;
        worker_lock(read_lock);
        atomic {
          assert(!freed);
          in_heap = true
        }
        read_lock = false
     fi
  od
}

/* UNLOADPLUGIN */
proctype Lifecycle() {
  byte n;
  bool v, found, mine;

  gate = false;
  do
  :: lock(callbacks_lock);
     frames_barrier();
     found = false;
     do
     :: n < WORKERS ->
        v = frames[n];
        atomic {
          assert(!(v && freed)); /* cf_owner */
          found = found || v;
          v = false;
          n++
        }
     :: else -> break
     od;
     n = 0;
     callbacks_lock = false;
     if
     :: !found -> break
     :: else
     fi
  od;
  atomic {
    assert(!running);
    drained = true
  }

  /* plugin_remove_reads() */
  lock(read_lock);
  if
  :: in_heap ->
     /* In the list or marked, by whomever. */
     in_list = false;
     in_heap = false;
     mine = true
  :: !in_heap && in_list ->
     in_list = false;
     to_remove = true;
#ifdef FREED_IN_USE
     mine = true
#endif
  :: else
  fi;
  read_lock = false;
  if
  :: mine -> destroy_read_func()
  :: else
  fi;

  reads == 0;
  atomic {
    assert(data_freed && freed);
    unmapped = true
  }
}

init {
  byte n;

  atomic {
    do
    :: n < WORKERS ->
       run Worker(n);
       run Buffer(n);
       n++
    :: else -> break
    od;
    run Lifecycle()
  }
}
