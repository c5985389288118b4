package postgres

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// target is what a DATABASE_URL says: where the database is, and as whom to use it. All
// else is up to this program. In particular nothing in it can name a file or a socket of
// the machine that the program runs on, nor the number of connections.
type target struct {
	host     string
	port     uint16
	user     string
	password string
	database string

	sslMode, sslNegotiation     string
	channelBinding, requireAuth string
	sessionAttrs                string // target_session_attrs
	applicationName, searchPath string
}

const defaultPort = 5432

// parameter is one that a URL may have behind its question mark.
type parameter struct {
	key string
	// values are those that it may have; nil is any.
	values []string
	field  func(*target) *string
}

var parameters = []parameter{
	{"application_name", nil, func(t *target) *string { return &t.applicationName }},
	{"channel_binding", []string{"disable", "prefer", "require"}, func(t *target) *string { return &t.channelBinding }},
	{"dbname", nil, func(t *target) *string { return &t.database }},
	{"host", nil, func(t *target) *string { return &t.host }},
	{"password", nil, func(t *target) *string { return &t.password }},
	{"port", nil, nil},
	{"require_auth", []string{"password", "md5", "scram-sha-256"}, func(t *target) *string { return &t.requireAuth }},
	{"search_path", nil, func(t *target) *string { return &t.searchPath }},
	{"sslmode", []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}, func(t *target) *string { return &t.sslMode }},
	{"sslnegotiation", []string{"postgres", "direct"}, func(t *target) *string { return &t.sslNegotiation }},
	{"target_session_attrs", []string{"any", "read-write", "primary"}, func(t *target) *string { return &t.sessionAttrs }},
	{"user", nil, func(t *target) *string { return &t.user }},
}

// URLError : a DATABASE_URL is not one that this program takes. Its text holds no value
// of the URL, so anybody may see it.
type URLError struct{ text string }

// Error says what is wrong and what would be right.
func (e *URLError) Error() string { return "DATABASE_URL: " + e.text }

func urlErrorf(format string, args ...any) error { return &URLError{fmt.Sprintf(format, args...)} }

// errUnreadable does not say more: nobody knows which part of such a text is the password.
var errUnreadable = &URLError{"it cannot be read; are user and password percent-encoded? It looks like postgres://user:password@host:port/database?sslmode=verify-full"}

// hostName is a host as a URL may name it: a name of DNS, or an address. No path is one.
var hostName = regexp.MustCompile(`^[a-zA-Z0-9_.:-]{1,253}$`)

// parseURL reads a DATABASE_URL.
func parseURL(text string) (target, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil && !strings.Contains(text, "://"):
		fallthrough
	case err == nil && u.Scheme != "postgres" && u.Scheme != "postgresql":
		return target{}, urlErrorf("it does not begin with postgres:// or postgresql://")
	case err != nil:
		return target{}, errUnreadable
	// A password with '?', '/' or '#' in it that is not encoded ends up behind the host.
	case strings.ContainsAny(u.RawQuery+u.EscapedPath(), "@\x00") || u.Fragment != "" || u.Opaque != "":
		return target{}, errUnreadable
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return target{}, errUnreadable
	}
	t := target{user: u.User.Username(), database: strings.TrimPrefix(u.Path, "/"), port: defaultPort}
	t.password, _ = u.User.Password()
	port := ""
	if t.host, port, err = splitHost(u.Host); err != nil {
		return target{}, err
	}
	for key, values := range query {
		if err := t.set(key, values, &port); err != nil {
			return target{}, err
		}
	}
	if err := t.check(port); err != nil {
		return target{}, err
	}
	return t, nil
}

// splitHost takes a host and a port from what stands before the path.
func splitHost(text string) (host, port string, err error) {
	if strings.Contains(text, ",") {
		return "", "", urlErrorf("host: several hosts are not taken; name one, or a name that leads to the one in charge")
	}
	if inner, ok := strings.CutPrefix(text, "["); ok {
		host, port, ok = strings.Cut(inner, "]")
		if !ok || port != "" && port[0] != ':' {
			return "", "", errUnreadable
		}
		return host, strings.TrimPrefix(port, ":"), nil
	}
	host, port, _ = strings.Cut(text, ":")
	return host, port, nil
}

// set takes one parameter.
func (t *target) set(key string, values []string, port *string) error {
	i := slices.IndexFunc(parameters, func(p parameter) bool { return p.key == key })
	if i < 0 {
		names := make([]string, len(parameters))
		for i, p := range parameters {
			names[i] = p.key
		}
		return urlErrorf("the parameter %q is not taken; these are: %s", shownKey(key), strings.Join(names, ", "))
	}
	p, into := parameters[i], port
	if p.field != nil {
		into = p.field(t)
	}
	switch {
	case len(values) > 1 || *into != "":
		return urlErrorf("%s: it is given twice", key)
	case strings.ContainsRune(values[0], 0):
		return urlErrorf("%s: it has a NUL in it", key)
	case p.values != nil && !slices.Contains(p.values, values[0]):
		return urlErrorf("%s: must be one of %s", key, strings.Join(p.values, ", "))
	}
	*into = values[0]
	return nil
}

// check returns what is wrong with all of it together.
func (t *target) check(port string) error {
	switch {
	case t.host == "":
		return urlErrorf("host: it is missing")
	case strings.ContainsAny(t.host, `/\@`):
		return urlErrorf("host: must be the name or the address of a server; a Unix socket is not taken")
	case !hostName.MatchString(t.host) || strings.Contains(t.host, ":") && net.ParseIP(t.host) == nil:
		return urlErrorf("host: must be one name or one address")
	case t.user == "":
		return urlErrorf("user: it is missing")
	}
	for name, value := range map[string]string{"user": t.user, "password": t.password, "dbname": t.database} {
		if strings.ContainsRune(value, 0) {
			return urlErrorf("%s: it has a NUL in it", name)
		}
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return urlErrorf("port: must be 1 to 65535")
		}
		t.port = uint16(n)
	}
	if t.database == "" {
		t.database = t.user // as libpq has it
	}
	if t.sslMode == "" {
		t.sslMode = "prefer" // as libpq has it
	}
	if t.sslNegotiation == "direct" && (t.sslMode == "disable" || t.sslMode == "allow" || t.sslMode == "prefer") {
		return urlErrorf("sslnegotiation: direct needs the sslmode require, verify-ca or verify-full")
	}
	if len(t.applicationName) > 63 || len(t.searchPath) > 1024 {
		return urlErrorf("application_name must have at most 63 bytes and search_path 1024")
	}
	return nil
}

// shownKey is the key of a parameter as an error may show it.
func shownKey(key string) string {
	const most = 40
	if len(key) > most || strings.Trim(strings.ToLower(key), "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
		return "…"
	}
	return key
}

// Identity returns a text that is the same for URLs which lead to the same database as the
// same user with the same password and settings, so that one [Store] does for all of them.
// It holds the password. The error is a [*URLError].
func Identity(databaseURL string) (string, error) {
	t, err := parseURL(databaseURL)
	if err != nil {
		return "", err
	}
	t.host = strings.TrimSuffix(strings.ToLower(t.host), ".")
	return fmt.Sprintf("%d %q", t.port, []string{
		t.host, t.user, t.password, t.database, t.sslMode, t.sslNegotiation, t.channelBinding, t.requireAuth, t.sessionAttrs, t.applicationName, t.searchPath,
	}), nil
}
