/*
 * Preloaded into QEMU: writes down what its block drivers ask of their client libraries, and lets no request leave.
 *
 * Each call becomes one JSON object on a line of its own in the file that HVEXT_RECORD names. Early calls succeed with
 * a dummy, so that later ones are seen; the last one of an open fails and carries "stop": true. The prototypes are
 * those of the libraries' public headers, which are not needed to build this. Bytes above 0x7f are written \u0080 to
 * \u00ff, one for each byte. There is one file for each library.
 */
#include <stdbool.h>
#include <stddef.h>

#define OWN __attribute__((visibility("hidden")))

/*
 * Write down a call. Arguments: pairs of a name and a value, ended by NULL. The name's first letter says what the value
 * is: s a string or NULL, d a long, b a pointer and a size_t. "stop" stands alone.
 */
OWN void record(const char *call, ...);

/* The function that is running, with its arguments. */
#define RECORD(...) record(__func__, __VA_ARGS__, NULL)

/* Whether there is a file to write to: else everything is passed on. */
OWN bool recording(void);

/*
 * The function of a library that QEMU has loaded, found by the start of its file name: QEMU opens its modules, and
 * their libraries with them, in a scope that RTLD_NEXT does not search.
 */
OWN void *behind(const char *library, const char *function);

/* A handle that is never looked into. */
extern OWN char dummy[4096];

/* Whether libcurl is at work, whose sockets are no business of the NBD server here. */
extern OWN volatile bool in_curl;

/* Make the socket one end of a pair at whose other end the NBD server is. */
OWN int become_nbd_client(int fd);
