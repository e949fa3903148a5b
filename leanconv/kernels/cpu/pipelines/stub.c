// Linked into every kernel: what Halide's code calls, handed on to the one runtime of the process.
#include <stddef.h>
static void *(*take)(void *, size_t);
static void (*give)(void *, void *);
void lc_attach(void *(*malloc_)(void *, size_t), void (*free_)(void *, void *)) { take = malloc_; give = free_; }
__attribute__((visibility("hidden"))) void *halide_malloc(void *context, size_t size) { return take(context, size); }
__attribute__((visibility("hidden"))) void halide_free(void *context, void *p) { give(context, p); }
__attribute__((visibility("hidden"))) int halide_error_out_of_memory(void *context) { (void)context; return -11; }
