// Scratch memory of the kernels: a thread keeps what its kernels gave back, so that no call maps fresh pages.
#include <pthread.h>
#include "runtime.h"

#define SLOTS 32

typedef struct { void *raw; size_t size; int used; } slot_t;
typedef struct { slot_t slots[SLOTS]; } arena_t;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread arena_t *arena;

static void drop(void *p) {
    arena_t *a = p;
    for (int i = 0; i < SLOTS; i++) free(a->slots[i].raw);
    free(a);
}
static void make_key(void) { pthread_key_create(&key, drop); }

void *lc_malloc(void *context, size_t size) {
    (void)context;
    size = (size + 4095 + 256) & ~(size_t)4095;  // vectors may read past the end
    if (!arena) {
        pthread_once(&once, make_key);
        if (!(arena = calloc(1, sizeof(arena_t)))) return NULL;
        pthread_setspecific(key, arena);
    }
    int best = -1, empty = -1;
    for (int i = 0; i < SLOTS; i++) {
        slot_t *s = &arena->slots[i];
        if (s->used) continue;
        if (!s->raw) { if (empty < 0) empty = i; }
        else if (s->size >= size && (best < 0 || s->size < arena->slots[best].size)) best = i;
        else if (s->size < size && empty < 0) empty = i;  // too small: give it up for a larger one
    }
    if (best >= 0 && (empty < 0 || arena->slots[best].size <= 4 * size)) {
        arena->slots[best].used = 1;
        return arena->slots[best].raw;
    }
    void *raw = NULL;
    if (posix_memalign(&raw, 4096, size)) return NULL;
    if (empty < 0) return raw;  // every slot is in use: lc_free gives this one back to the system
    slot_t *s = &arena->slots[empty];
    free(s->raw);
    s->raw = raw; s->size = size; s->used = 1;
    return raw;
}

void lc_free(void *context, void *p) {
    (void)context;
    if (!p) return;
    if (arena) for (int i = 0; i < SLOTS; i++) if (arena->slots[i].raw == p) { arena->slots[i].used = 0; return; }
    free(p);
}
