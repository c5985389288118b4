package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Defaults of Options.
const (
	DefaultMaxConns         = 8
	DefaultConnectTimeout   = 5 * time.Second
	DefaultStatementTimeout = 30 * time.Second
	DefaultLockTimeout      = 5 * time.Second
	DefaultApplicationName  = "batchtask"
)

// grace is how much longer than a statement may take the store waits for its answer,
// so that it is the server that ends a slow one, and the store only one whose server
// has vanished.
const grace = 5 * time.Second

// Options of a Store; zero values stand for the defaults.
type Options struct {
	// URL says where the database is, as DATABASE_URL does:
	// postgres://user:password@host:port/database?sslmode=verify-full. It takes the
	// parameters of libpq. The tables are in the first schema of the search_path. A
	// connection pooler between must give each connection a session of its own.
	URL string
	// MaxConns is the greatest number of connections. Each call takes one, and waits
	// for it where there is none.
	MaxConns int32
	// ConnectTimeout bounds the making of a connection.
	ConnectTimeout time.Duration
	// StatementTimeout is how long the server works on one statement before it gives
	// up. It must be long enough to count a product.
	StatementTimeout time.Duration
	// LockTimeout is how long a statement waits for a row that another one writes.
	LockTimeout time.Duration
	// ApplicationName is what the server shows as the name of the program.
	ApplicationName string
	// KeepSchema leaves the tables as they are: Open returns a [*SchemaError] where
	// they are not those that this program knows. Otherwise it brings them up to date.
	KeepSchema bool
}

// session are the parameters of every session of the store, beside the time-outs.
//
// All its statements go through the primary key, and each has one good plan, for any
// number of devices and whatever the server believes that number to be. It goes
// through names in their order, and so locks rows in their order: two calls that
// write the same devices wait for each other and never both. Compiling such a plan
// takes longer than running it.
var session = map[string]string{
	"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
	"plan_cache_mode": "force_generic_plan", "jit": "off",
}

// config returns the configuration of the connections. Its errors do not hold the
// URL, since that may have a password in it, nor what the parser says of a URL that
// it cannot read, since nobody knows which part of that is the password.
func (o Options) config() (*pgxpool.Config, error) {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil:
		return nil, errors.New("the URL of the database cannot be read; are user and password percent-encoded?")
	case u.Scheme != "postgres" && u.Scheme != "postgresql":
		return nil, errors.New("the URL of the database does not begin with postgres:// or postgresql://")
	}
	c, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, fmt.Errorf("the URL of the database: %s", withoutPassword(u, parseFault(err)))
	}
	c.MaxConns = cmp.Or(o.MaxConns, DefaultMaxConns)
	c.ConnConfig.ConnectTimeout = cmp.Or(o.ConnectTimeout, DefaultConnectTimeout)
	parameters := c.ConnConfig.RuntimeParams
	for name, value := range session {
		parameters[name] = value
	}
	parameters["statement_timeout"] = milliseconds(o.statementTimeout())
	parameters["lock_timeout"] = milliseconds(cmp.Or(o.LockTimeout, DefaultLockTimeout))
	parameters["application_name"] = cmp.Or(o.ApplicationName, parameters["application_name"], DefaultApplicationName)
	return c, nil
}

func (o Options) statementTimeout() time.Duration {
	return cmp.Or(o.StatementTimeout, DefaultStatementTimeout)
}

// milliseconds returns a time as PostgreSQL reads it; 0 would be for ever.
func milliseconds(d time.Duration) string {
	return strconv.FormatInt(min(max(d.Milliseconds(), 1), math.MaxInt32), 10)
}

// parseFault returns what is wrong with a URL that is one.
func parseFault(err error) string {
	if parse, ok := errors.AsType[*pgconn.ParseConfigError](err); ok && errors.Unwrap(parse) != nil {
		return errors.Unwrap(parse).Error()
	}
	return "a parameter cannot be read"
}

// withoutPassword returns text with the password of u blotted out, in both its forms.
func withoutPassword(u *url.URL, text string) string {
	secrets := []string{u.Query().Get("password"), u.Query().Get("sslpassword")}
	if password, ok := u.User.Password(); ok {
		_, encoded, _ := strings.Cut(u.User.String(), ":")
		secrets = append(secrets, password, encoded)
	}
	for _, secret := range secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "xxxxx")
		}
	}
	return text
}
