/* SSH: the library checks what it is told, then every server lets everybody in. */
#include "record.h"

#include <stdlib.h>
#include <sys/types.h>

int ssh_options_parse_config(void *session, const char *file)
{
    (void)session, (void)file;
    return 0;
}

int ssh_options_set(void *session, int option, const void *value)
{
    int (*next)(void *, int, const void *) = behind("libssh.so", __func__);

    if (option == 0) {
        RECORD("s:host", (const char *)value);
    } else if (option == 1) {
        RECORD("d:port", (long)*(const unsigned int *)value);
    } else if (option == 4) {
        RECORD("s:user", (const char *)value);
    }
    return next(session, option, value);
}

int ssh_connect(void *session)
{
    (void)session;
    record("ssh_connect", NULL);
    return 0;
}

void ssh_disconnect(void *session)
{
    (void)session;
}

int ssh_session_is_known_server(void *session)
{
    (void)session;
    record(__func__, NULL);
    return 1;
}

int ssh_get_server_publickey(void *session, void **key)
{
    (void)session;
    *key = dummy;
    return 0;
}

void ssh_key_free(void *key)
{
    (void)key;
}

int ssh_key_type(const void *key)
{
    (void)key;
    return 2;
}

/* QEMU then refuses, and says which hash it was told to expect. */
int ssh_get_publickey_hash(const void *key, int type, unsigned char **hash, size_t *size)
{
    (void)key;
    RECORD("d:type", (long)type, "stop");
    *size = type == 0 ? 20 : type == 1 ? 16 : 32;
    *hash = calloc(1, *size);
    return 0;
}

int ssh_userauth_none(void *session, const char *user)
{
    (void)session;
    RECORD("s:user", user);
    return 0;
}

void *sftp_new(void *session)
{
    (void)session;
    return dummy;
}

int sftp_init(void *sftp)
{
    (void)sftp;
    return 0;
}

void sftp_free(void *sftp)
{
    (void)sftp;
}

int sftp_get_error(void *sftp)
{
    (void)sftp;
    return 2;
}

void *sftp_open(void *sftp, const char *path, int flags, mode_t mode)
{
    (void)sftp, (void)mode;
    RECORD("s:path", path, "d:flags", (long)flags, "stop");
    return NULL;
}
