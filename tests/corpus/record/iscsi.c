/* libiscsi: everything is taken until it would connect. */
#include "record.h"

void *iscsi_create_context(const char *initiator)
{
    RECORD("s:initiator", initiator);
    return dummy;
}

int iscsi_destroy_context(void *context)
{
    (void)context;
    return 0;
}

const char *iscsi_get_error(void *context)
{
    (void)context;
    return "recorded";
}

int iscsi_is_logged_in(void *context)
{
    (void)context;
    return 0;
}

int iscsi_init_transport(void *context, int transport)
{
    (void)context;
    RECORD("d:transport", (long)transport);
    return 0;
}

int iscsi_set_targetname(void *context, const char *target)
{
    (void)context;
    RECORD("s:target", target);
    return 0;
}

int iscsi_set_initiator_username_pwd(void *context, const char *user, const char *password)
{
    (void)context;
    RECORD("s:user", user, "s:password", password);
    return 0;
}

int iscsi_set_session_type(void *context, int type)
{
    (void)context, (void)type;
    return 0;
}

/* The library's own URL parser calls this for QEMU, without a context: what comes of that is its own. */
int iscsi_set_header_digest(void *context, int digest)
{
    RECORD("d:digest", (long)digest);
    if (!context) {
        int (*next)(void *, int) = behind("libiscsi", __func__);
        return next(context, digest);
    }
    return 0;
}

int iscsi_set_timeout(void *context, int seconds)
{
    (void)context;
    RECORD("d:seconds", (long)seconds);
    return 0;
}

int iscsi_full_connect_sync(void *context, const char *portal, int lun)
{
    (void)context;
    RECORD("s:portal", portal, "d:lun", (long)lun, "stop");
    return -1;
}
