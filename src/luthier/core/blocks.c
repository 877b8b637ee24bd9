/* Large blocks of memory without holes between them: preloaded into a process that trains (core/environment.py), before the allocator that
 * it has, to which smaller blocks are passed on.
 *
 * All blocks lie in one reserved range of addresses. Freed ones stay resident, joined to their neighbours, and serve the next request that
 * fits. Where none fits, a heap grows, for its holes are too small; here a block is made of them: their pages are moved, uncopied, to where
 * it is to stand (mremap), and what they leave are addresses, of which there are enough. So the range never holds more than the most that
 * was in use at once, and what a plan adds up is what the process takes (docs/notes/blocks.md). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/mman.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    LEAST = 64 << 10,    /* bytes of a large block */
    RANGE = 1 << 28,     /* pages: a terabyte of 4 kB each */
    MOST_EDGES = 20000,  /* of the 65,530 mappings that a process may have (vm.max_map_count) */
};
enum state { VACANT, POOLED, IN_USE }; /* addresses alone, pages that wait, pages that a block has */

/* Neighbouring pages of one state */
typedef struct extent {
    size_t at, pages;
    enum state state;
    struct extent *before, *after;   /* in the range */
    struct extent *newer, *older;    /* of its state; IN_USE has no list */
} extent;

static char *range; /* NULL: it could not be had, and all is passed on */
static size_t page, limit; /* bytes of a page, and of a block at most: all memory there is */
static size_t in_use, pooled, most; /* in pages; most: in use at once since the last release */
static extent *lists[IN_USE], *unused, *fresh; /* nodes that were given back, and the first that never was one */
static extent **of_page; /* of the first page of what is in use */
static unsigned char *edge; /* of a page: a mapping of the kernel's may begin here */
static size_t edges, top; /* how many, and the page above the highest that was ever in use */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
    void *(*malloc)(size_t), *(*calloc)(size_t, size_t), *(*realloc)(void *, size_t), *(*memalign)(size_t, size_t);
    void (*free)(void *);
    size_t (*usable)(void *);
} next; /* the allocator behind this one */

static void enlist(extent *e, enum state state) {
    e->state = state;
    if (state == IN_USE) return;
    e->newer = NULL, e->older = lists[state];
    if (e->older) e->older->newer = e;
    lists[state] = e;
    if (state == POOLED) pooled += e->pages;
}

static void delist(extent *e) {
    if (e->newer) e->newer->older = e->older;
    else lists[e->state] = e->older;
    if (e->older) e->older->newer = e->newer;
    if (e->state == POOLED) pooled -= e->pages;
}

/* Cut an extent that is on no list to so many pages; the rest */
static extent *cut(extent *e, size_t pages) {
    extent *rest = unused;
    if (rest) unused = rest->older;
    else rest = fresh++;
    *rest = (extent){.at = e->at + pages, .pages = e->pages - pages, .before = e, .after = e->after};
    if (rest->after) rest->after->before = rest;
    e->pages = pages, e->after = rest;
    return rest;
}

/* Take the extent behind it into one; both are on no list */
static void append(extent *e, extent *behind) {
    e->pages += behind->pages, e->after = behind->after;
    if (e->after) e->after->before = e;
    behind->older = unused, unused = behind;
}

/* Put an extent that is on no list into this state's, with neighbours of the same */
static void leave(extent *e, enum state state) {
    if (e->after && e->after->state == state) delist(e->after), append(e, e->after);
    if (e->before && e->before->state == state) {
        extent *before = e->before;
        delist(before), append(before, e), e = before;
    }
    enlist(e, state);
}

static void mark(size_t at) { edges += !edge[at], edge[at] = 1; }

/* No huge pages, which hold more than was asked for; and nothing of a terabyte of addresses in a core dump */
static void advise(char *at, size_t bytes) {
    madvise(at, bytes, MADV_NOHUGEPAGE);
    madvise(at, bytes, MADV_DONTDUMP);
}

/* New, untouched addresses in the place of these, and one mapping */
static void renew(size_t at, size_t pages) {
    char *to = range + at * page;
    mmap(to, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    advise(to, pages * page);
    mark(at), mark(at + pages); /* pages that were moved keep their mapping beside this one */
    for (size_t i = at + 1; i < at + pages && i < top; i++) edges -= edge[i], edge[i] = 0;
}

/* Pages from one place to another. The kernel moves parts of one mapping only (until Linux 6.17): so from edge to edge */
static void move(size_t from, size_t to, size_t pages) {
    for (size_t part; pages; from += part, to += part, pages -= part) {
        for (part = 1; part < pages && !edge[from + part]; part++);
        char *source = range + from * page, *target = range + to * page;
        if (mremap(source, part * page, part * page, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target) == target) {
            for (size_t i = to + 1; i < to + part; i++) edges -= edge[i], edge[i] = 0;
        } else { /* an older kernel: fresh pages there, none here */
            renew(to, part);
            madvise(source, part * page, MADV_DONTNEED);
        }
        mark(to), mark(to + part);
    }
}

/* Take so many pages from those that wait: to another place, as long as there may be more mappings, or back to the kernel (NOWHERE) */
enum { NOWHERE = RANGE };
static void draw(size_t pages, size_t to) {
    while (pages && lists[POOLED]) {
        extent *end = lists[POOLED];
        delist(end);
        size_t part = end->pages < pages ? end->pages : pages;
        if (part < end->pages) {
            extent *begin = end;
            end = cut(begin, begin->pages - part), enlist(begin, POOLED);
        }
        if (to == NOWHERE || edges > MOST_EDGES) madvise(range + end->at * page, part * page, MADV_DONTNEED);
        else move(end->at, to, part);
        if (to != NOWHERE) to += part;
        leave(end, VACANT);
        pages -= part;
    }
}

/* Where a block is to stand: waiting pages that suffice, the lowest, which were used last; else those, the most, behind which are addresses
 * enough; else those */
static extent *place(size_t pages) {
    extent *fits = NULL, *grows = NULL, *bare = NULL;
    for (extent *e = lists[POOLED]; e; e = e->older) {
        if (e->pages >= pages) fits = fits && fits->at < e->at ? fits : e;
        else if (e->after && e->after->state == VACANT && e->pages + e->after->pages >= pages)
            grows = grows && grows->pages >= e->pages ? grows : e;
    }
    if (fits || grows) return fits ? fits : grows;
    for (extent *e = lists[VACANT]; e; e = e->older)
        if (e->pages >= pages) bare = bare && bare->pages <= e->pages ? bare : e;
    return bare;
}

/* All that waits, back to the kernel */
static void release(void) {
    draw(pooled, NOWHERE);
    for (extent *e = lists[VACANT]; e; e = e->older) renew(e->at, e->pages);
    most = in_use;
}

/* A block of so many bytes, or NULL; zero: in zeros */
static void *take(size_t bytes, int zero) {
    if (bytes < LEAST || !range || bytes > limit) return NULL;
    size_t pages = (bytes + page - 1) / page, used = 0;
    pthread_mutex_lock(&lock);
    extent *e = place(pages);
    if (!e) return pthread_mutex_unlock(&lock), NULL;
    delist(e);
    if (e->state == POOLED) {
        used = e->pages < pages ? e->pages : pages;
        if (e->pages < pages) delist(e->after), append(e, e->after);
    }
    if (e->pages > pages) {
        extent *rest = cut(e, pages);
        enlist(rest, used == pages ? POOLED : VACANT); /* what is behind it is of another state */
    }
    e->state = IN_USE, of_page[e->at] = e;
    in_use += pages;
    if (in_use > most) most = in_use;
    if (e->at + pages > top) top = e->at + pages;
    if (in_use + pooled > most) {
        size_t moved = in_use + pooled - most;
        draw(moved, e->at + used), used += moved;
    }
    pthread_mutex_unlock(&lock);
    char *block = range + e->at * page;
    return zero ? memset(block, 0, used * page) : block;
}

static int is_ours(void *block) { return range && (char *)block >= range && (char *)block < range + RANGE * page; }

static size_t bytes_of(void *block) {
    return is_ours(block) ? of_page[((char *)block - range) / page]->pages * page : next.usable(block);
}

static void give(void *block) {
    pthread_mutex_lock(&lock);
    extent *e = of_page[((char *)block - range) / page];
    in_use -= e->pages;
    leave(e, POOLED);
    pthread_mutex_unlock(&lock);
}

/* The range, and behind it the tables, of which pages are had as they are used */
static void reserve(void) {
    size_t bytes = RANGE * page;
    char *got = mmap(NULL, bytes + RANGE * (sizeof *of_page + sizeof *fresh + 1) + 1, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) return;
    advise(got, bytes + RANGE * (sizeof *of_page + sizeof *fresh));
    of_page = (extent **)(got + bytes), fresh = (extent *)(of_page + RANGE), edge = (unsigned char *)(fresh + RANGE);
    *fresh = (extent){.pages = RANGE};
    enlist(fresh++, VACANT);
    range = got;
}

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

static char early[1 << 14]; /* what dlsym and the loader ask for meanwhile */
static size_t early_used;

static void *from_early(size_t bytes) {
    char *block = early + early_used;
    early_used += (bytes + 63) / 64 * 64;
    return early_used <= sizeof early ? block : NULL;
}

static int is_early(void *block) { return (char *)block >= early && (char *)block < early + sizeof early; }

/* Whether the allocator behind is known; it is not while it is looked for, at the first call */
static int ready(void) {
    static int looking;
    if (next.malloc || looking) return !!next.malloc;
    looking = 1;
    page = sysconf(_SC_PAGESIZE), limit = sysconf(_SC_PHYS_PAGES) * page;
    next.calloc = dlsym(RTLD_NEXT, "calloc"), next.realloc = dlsym(RTLD_NEXT, "realloc"), next.memalign = dlsym(RTLD_NEXT, "memalign");
    next.free = dlsym(RTLD_NEXT, "free"), next.usable = dlsym(RTLD_NEXT, "malloc_usable_size");
    next.malloc = dlsym(RTLD_NEXT, "malloc");
    reserve();
    pthread_atfork(before_fork, after_fork, after_fork);
    return 1;
}

void *malloc(size_t bytes) {
    if (!ready()) return from_early(bytes);
    void *block = take(bytes, 0);
    return block ? block : next.malloc(bytes);
}

void *calloc(size_t number, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(number, size, &bytes)) return errno = ENOMEM, NULL;
    if (!ready()) return from_early(bytes);
    void *block = take(bytes, 1);
    return block ? block : next.calloc(number, size);
}

void *memalign(size_t alignment, size_t bytes) {
    void *block = ready() && alignment <= page ? take(bytes, 0) : NULL;
    return block ? block : next.memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **block, size_t alignment, size_t bytes) {
    int before = errno;
    if (alignment % sizeof(void *) || !alignment || alignment & (alignment - 1)) return EINVAL;
    void *got = memalign(alignment, bytes);
    if (got) *block = got;
    return errno = before, got ? 0 : ENOMEM;
}

void free(void *block) {
    int before = errno;
    if (is_ours(block)) give(block);
    else if (block && !is_early(block)) next.free(block);
    errno = before;
}

void *realloc(void *block, size_t bytes) {
    if (!block) return malloc(bytes);
    size_t had = is_early(block) ? (size_t)(early + sizeof early - (char *)block) : bytes_of(block);
    if (!is_ours(block) && !is_early(block) && bytes < LEAST) return next.realloc(block, bytes);
    if (is_ours(block) && bytes <= had && had - bytes < page) return block;
    void *got = malloc(bytes);
    if (!got) return NULL;
    memcpy(got, block, had < bytes ? had : bytes);
    free(block);
    return got;
}

size_t malloc_usable_size(void *block) { return block ? bytes_of(block) : 0; }

/* Called by core/environment.py: whether there can be large blocks here */
int luthier_has_range(void) { return ready() && range; }

/* Called by train/host.py: hand back what waits */
void luthier_release_blocks(void) {
    pthread_mutex_lock(&lock);
    if (range) release();
    pthread_mutex_unlock(&lock);
}
