package postgres

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"math"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
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

// What pools do, whatever a URL says.
const (
	connLifetime, lifetimeJitter = time.Hour, 5 * time.Minute
	connIdle                     = 5 * time.Minute
	healthCheckPeriod            = 30 * time.Second
	pingTimeout                  = 5 * time.Second
	statementCache               = 128
)

// Options of a Store; zero values stand for the defaults.
type Options struct {
	// URL says where the database is, as DATABASE_URL does:
	// postgres://user:password@host:port/database?sslmode=verify-full. It takes few other
	// parameters, and an error says which; none of them can name a file. Nor does the
	// environment of the program count (PGHOST, PGSSLCERT, ~/.pgpass). The tables are in the
	// first schema of the search_path. A connection pooler between must give each connection
	// a session of its own.
	URL string
	// Networks are those in which the server may be; the zero value is all.
	Networks Networks
	// Authorities are the certificate authorities that the server's certificate is checked
	// against; nil for those of the system.
	Authorities *x509.CertPool
	// Connections bounds those of all Stores that have the same one; nil is no bound.
	Connections *Connections
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

// config returns the configuration of the connections of a pool. The error is a
// [*URLError], which holds no value of the URL.
func (o Options) config() (*pgxpool.Config, target, error) {
	t, err := parseURL(o.URL)
	if err != nil {
		return nil, t, err
	}
	conn, err := o.connConfig(t)
	if err != nil {
		return nil, t, err
	}
	// The parser of pools reads the environment too; nothing is left of what it has found.
	c, err := pgxpool.ParseConfig(nothing)
	if err != nil {
		return nil, t, errEnvironment
	}
	c.ConnConfig = conn
	c.MaxConns, c.MinConns, c.MinIdleConns = cmp.Or(o.MaxConns, DefaultMaxConns), 0, 0
	c.MaxConnLifetime, c.MaxConnLifetimeJitter, c.MaxConnIdleTime = connLifetime, lifetimeJitter, connIdle
	c.HealthCheckPeriod, c.PingTimeout = healthCheckPeriod, pingTimeout
	c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		err := remembers(ctx, conn.PgConn())
		return err == nil, err
	}
	return c, t, nil
}

// nothing is a URL from which the driver's parser takes all that it would else take from
// the environment, or from files in the home of the user.
const nothing = "postgres://nobody:nothing@localhost:5432/nothing?sslmode=disable&sslcert=&sslkey=&sslrootcert=&sslpassword=&sslcertmode=disable&sslsni=1" +
	"&sslnegotiation=postgres&passfile=&connect_timeout=1&target_session_attrs=any&min_protocol_version=3.0&max_protocol_version=3.0" +
	"&channel_binding=prefer&require_auth=&application_name=&options="

var errEnvironment = errors.New("PGSERVICE is set in the environment of the program, which the driver heeds: unset it; where a database is says DATABASE_URL alone")

// connConfig returns the configuration of a connection without its session.
func (o Options) connConfig(t target) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(nothing)
	if err != nil {
		return nil, errEnvironment
	}
	c.StatementCacheCapacity, c.DescriptionCacheCapacity, c.DefaultQueryExecMode = statementCache, statementCache, pgx.QueryExecModeCacheStatement
	c.Host, c.Port, c.User, c.Password, c.Database = t.host, t.port, t.user, t.password, t.database
	c.ConnectTimeout = cmp.Or(o.ConnectTimeout, DefaultConnectTimeout)
	c.SSLCertMode, c.SSLNegotiation, c.KerberosSpn, c.KerberosSrvName = "disable", t.sslNegotiation, "", ""
	c.ChannelBinding, c.RequireAuth = cmp.Or(t.channelBinding, "prefer"), t.requireAuth
	// A pooler takes this parameter, and few others.
	c.RuntimeParams = map[string]string{"application_name": cmp.Or(o.ApplicationName, t.applicationName, DefaultApplicationName)}
	c.ValidateConnect = nil
	c.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) {} // else the driver keeps them
	c.MaxProtocolMessageBodyLen = maxRow
	c.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
		return &limited{Conn: conn}, nil
	}
	timeout := c.ConnectTimeout
	c.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return lookup(ctx, host)
	}
	dialer := &net.Dialer{Timeout: timeout, KeepAlive: time.Minute, ControlContext: o.Networks.control}
	c.DialFunc = o.Connections.dial(dialer.DialContext)
	modes := o.tlsConfigs(t)
	c.TLSConfig, c.Fallbacks = modes[0], nil
	for _, config := range modes[1:] {
		c.Fallbacks = append(c.Fallbacks, &pgconn.FallbackConfig{Host: t.host, Port: t.port, TLSConfig: config})
	}
	return c, nil
}

// tlsConfigs returns how to try to connect, one after the other, as sslmode says; nil is
// without TLS. No certificate of a client is ever shown.
func (o Options) tlsConfigs(t target) []*tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Authorities, ServerName: t.host}
	if t.sslNegotiation == "direct" {
		c.NextProtos = []string{"postgresql"}
	}
	switch t.sslMode {
	case "disable":
		return []*tls.Config{nil}
	case "verify-full":
		return []*tls.Config{c}
	case "verify-ca":
		// The name is not looked at; the chain is.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("the server has shown no certificate")
			}
			between := x509.NewCertPool()
			for _, certificate := range state.PeerCertificates[1:] {
				between.AddCert(certificate)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: o.Authorities, Intermediates: between})
			return err
		}
		return []*tls.Config{c}
	}
	c.InsecureSkipVerify = true
	switch t.sslMode {
	case "allow":
		return []*tls.Config{nil, c}
	case "prefer":
		return []*tls.Config{c, nil}
	default: // require
		return []*tls.Config{c}
	}
}

// parameters are those of every session of the store.
func (o Options) parameters() map[string]string {
	p := maps.Clone(planner)
	maps.Copy(p, meaning)
	p["statement_timeout"] = milliseconds(o.statementTimeout())
	p["lock_timeout"] = milliseconds(cmp.Or(o.LockTimeout, DefaultLockTimeout))
	return p
}

func (o Options) statementTimeout() time.Duration {
	return cmp.Or(o.StatementTimeout, DefaultStatementTimeout)
}

// milliseconds returns a time as PostgreSQL reads it; 0 would be for ever.
func milliseconds(d time.Duration) string {
	return strconv.FormatInt(min(max(d.Milliseconds(), 1), math.MaxInt32), 10)
}

// with returns a copy of the configuration for sessions of these parameters.
func with(c *pgx.ConnConfig, t target, parameters map[string]string) *pgx.ConnConfig {
	c = c.Copy()
	c.AfterConnect = setUp(t, parameters)
	return c
}
