package mqtt

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
	"unicode"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
)

// Defaults of Options.
const (
	DefaultClientIDPrefix    = "batchtask"
	DefaultConnections       = 2
	DefaultWindow            = 1000
	DefaultMaxPayloadBytes   = 256 * 1024
	DefaultAckTimeout        = 20 * time.Second
	DefaultProbation         = 10 * time.Minute
	DefaultWriteTimeout      = 5 * time.Second
	DefaultConnectTimeout    = 10 * time.Second
	DefaultKeepAlive         = 30 * time.Second
	DefaultFileCheckInterval = 30 * time.Second
)

const (
	maxConnections = 64
	// maxWindow keeps a connection well away from the 65535 packet identifiers that MQTT has.
	maxWindow = 32768
	// maxPayload keeps a packet below the 268,435,455 bytes of MQTT 3.1.1 section 2.2.3, whatever the topic.
	maxPayload = 268_435_455 - maxTopicBytes - 4
	// maxClientIDPrefix leaves room for the suffix in what every broker must accept (see sender.go).
	maxClientIDPrefix = 64
)

// Options say how a Pool reaches the broker. The zero value of a field stands for its default.
type Options struct {
	// URL of the broker: scheme tcp or mqtt (default port 1883), ssl, tls or mqtts (8883), ws (80), wss (443). A user
	// and password in it count when UsernameFile is empty; they are never logged. Required.
	URL string
	// ClientIDPrefix begins every client identifier; each connection adds a random suffix of 13 characters. Up to 10
	// characters stay within the 23 that every broker must accept (MQTT 3.1.1 section 3.1.3.1); at most 64.
	ClientIDPrefix string

	// UsernameFile and PasswordFile hold the credentials; newlines at their end are left out. A password needs a user
	// name. These files and those below are read for every new connection.
	UsernameFile string
	PasswordFile string
	// CAFile holds the certificates (PEM) the broker's certificate is checked against instead of the system's.
	CAFile string
	// CertFile and KeyFile hold the client certificate and its key (PEM); both or none.
	CertFile string
	KeyFile  string
	// ServerName is the name the broker's certificate must have, if not the host in URL.
	ServerName string
	// FileCheckInterval is how often the files are compared with those the connections were made with. One connection
	// at a time is renewed when they differ, after what it has in flight was acknowledged. 30 s.
	FileCheckInterval time.Duration

	// Connections is the number of shared connections, 1 to 64. 2.
	Connections int
	// Window is how many messages the pool holds at once, waiting and in flight, 1 to 32768. 1000.
	Window int
	// MaxPayloadBytes is the largest payload, up to 268,369,916. 256 KiB.
	MaxPayloadBytes int

	// AckTimeout is how long a PUBACK may take before the message is sent again, provided that a message sent later on
	// the same connection was acknowledged or none has been for that long (a slow broker is given time). 20 s.
	AckTimeout time.Duration
	// Probation is how long a product stays apart from the others, at least, after a message of it was rejected. 10 min.
	Probation time.Duration
	// WriteTimeout is how long the broker may take no bytes before the connection is given up. 5 s.
	WriteTimeout time.Duration
	// ConnectTimeout bounds dialling, and the handshake after it. 10 s.
	ConnectTimeout time.Duration
	// KeepAlive is the interval of PINGREQ on an idle connection, in whole seconds, 1 s to 65535 s. 30 s.
	KeepAlive time.Duration

	// Clock is the source of time; the real one when nil.
	Clock clock.WithTicker
	// Log gets what happens to connections; never payloads or credentials.
	Log logr.Logger
	// Metrics are counted on; not shown anywhere when nil.
	Metrics *Metrics
}

// target is Options.URL taken apart.
type target struct {
	url       *url.URL // without credentials
	tls       bool
	websocket bool
	username  string
	password  string
}

func (o *Options) setDefaults() {
	o.ClientIDPrefix = cmp.Or(o.ClientIDPrefix, DefaultClientIDPrefix)
	o.Connections = cmp.Or(o.Connections, DefaultConnections)
	o.Window = cmp.Or(o.Window, DefaultWindow)
	o.MaxPayloadBytes = cmp.Or(o.MaxPayloadBytes, DefaultMaxPayloadBytes)
	o.AckTimeout = cmp.Or(o.AckTimeout, DefaultAckTimeout)
	o.Probation = cmp.Or(o.Probation, DefaultProbation)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, DefaultWriteTimeout)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, DefaultConnectTimeout)
	o.KeepAlive = cmp.Or(o.KeepAlive, DefaultKeepAlive)
	o.FileCheckInterval = cmp.Or(o.FileCheckInterval, DefaultFileCheckInterval)
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
}

// validate returns the first fault found, named by its field.
func (o *Options) validate(to target) error {
	for _, d := range []struct {
		name string
		v    time.Duration
	}{
		{"AckTimeout", o.AckTimeout},
		{"Probation", o.Probation},
		{"WriteTimeout", o.WriteTimeout},
		{"ConnectTimeout", o.ConnectTimeout},
		{"FileCheckInterval", o.FileCheckInterval},
	} {
		if d.v < time.Millisecond {
			return fmt.Errorf("%s is %v, at least 1ms is needed", d.name, d.v)
		}
	}
	for _, r := range []struct {
		name   string
		v, max int
	}{
		{"Connections", o.Connections, maxConnections},
		{"Window", o.Window, maxWindow},
		{"MaxPayloadBytes", o.MaxPayloadBytes, maxPayload},
	} {
		if r.v < 1 || r.v > r.max {
			return fmt.Errorf("%s is %d, must be from 1 to %d", r.name, r.v, r.max)
		}
	}
	usesTLSOption := o.CAFile != "" || o.CertFile != "" || o.ServerName != ""
	switch {
	case o.KeepAlive < time.Second || o.KeepAlive > 65535*time.Second:
		return fmt.Errorf("KeepAlive is %v, must be from 1s to 65535s", o.KeepAlive)
	case len(o.ClientIDPrefix) > maxClientIDPrefix:
		return fmt.Errorf("ClientIDPrefix has %d bytes, at most %d are allowed", len(o.ClientIDPrefix), maxClientIDPrefix)
	case !printableASCII(o.ClientIDPrefix):
		return errors.New("ClientIDPrefix has a character that is not printable ASCII")
	case o.PasswordFile != "" && o.UsernameFile == "":
		return errors.New("PasswordFile is set without UsernameFile")
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("CertFile and KeyFile are needed together")
	case usesTLSOption && !to.tls:
		return fmt.Errorf("CAFile, CertFile and ServerName need a URL with TLS, not %s", to.url.Scheme)
	}
	return nil
}

func printableASCII(s string) bool {
	for _, r := range s {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) || r == ' ' {
			return false
		}
	}
	return true
}

// parseURL takes the broker's URL apart. Its errors show nothing of the URL but scheme and host, since it may hold a
// password, even at a wrong place.
func parseURL(raw string) (target, error) {
	if raw == "" {
		return target{}, errors.New("URL is empty")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, errors.New("URL cannot be parsed")
	}
	var to target
	if u.User != nil {
		to.username = u.User.Username()
		to.password, _ = u.User.Password()
		u.User = nil
	}
	port := ""
	switch u.Scheme {
	case "tcp", "mqtt":
		port = "1883"
	case "ssl", "tls", "mqtts":
		port, to.tls = "8883", true
	case "ws":
		to.websocket = true
	case "wss":
		to.websocket, to.tls = true, true
	default:
		return target{}, errors.New("URL needs one of the schemes tcp, mqtt, ssl, tls, mqtts, ws, wss")
	}
	if u.Hostname() == "" {
		return target{}, errors.New("URL has no host")
	}
	if u.Port() == "" && port != "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	to.url = u
	return to, nil
}
