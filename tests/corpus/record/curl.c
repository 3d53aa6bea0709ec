/* curl: the library reads the URL; it is stopped where it would resolve the name or connect. */
#include "record.h"

#include <stdarg.h>

volatile bool in_curl;

int curl_easy_setopt(void *handle, int option, ...)
{
    int (*next)(void *, int, ...) = behind("libcurl", __func__);
    va_list arguments;
    void *value;

    va_start(arguments, option);
    value = va_arg(arguments, void *);
    va_end(arguments);
    switch (option) {
    case 10002: RECORD("s:url", (const char *)value); break;
    case 10173: RECORD("s:username", (const char *)value); break;
    case 10174: RECORD("s:password", (const char *)value); break;
    case 10175: RECORD("s:proxyusername", (const char *)value); break;
    case 10176: RECORD("s:proxypassword", (const char *)value); break;
    case 10022: RECORD("s:cookie", (const char *)value); break;
    case 13: RECORD("d:timeout", (long)value); break;
    case 64: RECORD("d:ssl_verifypeer", (long)value); break;
    case 81: RECORD("d:ssl_verifyhost", (long)value); break;
    }
    return next(handle, option, value);
}

int curl_easy_perform(void *handle)
{
    int (*next)(void *) = behind("libcurl", __func__);

    in_curl = true;
    int result = next(handle);
    in_curl = false;
    return result;
}
