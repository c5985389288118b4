package mqtt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"k8s.io/utils/clock"
)

// link is a paho client with its one connection: never used again after it.
type link struct {
	client paho.Client
	conn   *bufferedConn
	id     string
	files  fingerprint // of the files it was made with
	since  time.Time
	unhook func() bool // takes the connection off the context it ends with
	// lost is closed when paho has dealt with the end of the connection: every token has its final state. It stays open
	// when the connection was closed by disconnect.
	lost chan struct{}
}

// open makes a connection, with paho's options as set leaves them. Ending ctx aborts the attempt, and the connection
// later.
func (f files) open(ctx context.Context, id string, set func(*paho.ClientOptions)) (*link, error) {
	a, err := f.read()
	if err != nil {
		return nil, err
	}
	l := &link{id: id, files: a.fingerprint, lost: make(chan struct{})}
	o := paho.NewClientOptions()
	o.Servers = []*url.URL{f.target.url}
	o.SetClientID(l.id).SetUsername(a.username).SetPassword(a.password)
	// See the package comment: whoever needs another connection makes another link.
	o.SetAutoReconnect(false).SetConnectRetry(false).SetStore(noStore{})
	// Without a version paho would try each failed connect again with MQTT 3.1.
	o.SetProtocolVersion(4)
	// paho's time-out is how long Publish waits for its turn. What is decisive is that of bufferedConn, so this one is
	// longer: a packet may wait for one piece that is being written and another before it.
	o.SetConnectTimeout(f.options.ConnectTimeout).SetWriteTimeout(2 * f.options.WriteTimeout)
	o.SetKeepAlive(f.options.KeepAlive)
	o.SetConnectionLostHandler(func(paho.Client, error) { close(l.lost) })
	set(o)
	var dialErr error
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		conn, err := f.dial(ctx, a)
		if err != nil {
			dialErr = err // paho adds the words "network Error" and nothing else
			return nil, err
		}
		l.conn = newBufferedConn(conn, f.options.Clock, f.options.WriteTimeout)
		if f.shorten > 0 {
			l.conn.shorten(f.shorten)
		}
		l.unhook = context.AfterFunc(ctx, func() { l.conn.fail(errShutdown) })
		return l.conn, nil
	})
	l.client = paho.NewClient(o)
	token := l.client.Connect()
	<-token.Done() // dialling and the handshake have deadlines
	switch {
	case dialErr != nil:
		return nil, dialErr
	case token.Error() != nil:
		l.unhook()
		return nil, fmt.Errorf("MQTT connect: %w", token.Error())
	case l.conn.isDead():
		// paho takes a CONNACK with a return code it does not know for a success, having closed the connection.
		l.unhook()
		l.client.Disconnect(0)
		return nil, fmt.Errorf("MQTT connect: %w", l.conn.cause())
	}
	l.since = f.options.Clock.Now()
	return l, nil
}

// await makes a call of paho that the broker has to answer, and returns its token once it has. call may hang when the
// connection has just died, so spawn runs it in a goroutine.
func (l *link) await(clk clock.WithTicker, timeout time.Duration, spawn func(func()), call func() paho.Token) (paho.Token, error) {
	tokens := make(chan paho.Token, 1)
	spawn(func() { tokens <- call() })
	timer := clk.NewTimer(timeout)
	defer timer.Stop()
	var token paho.Token
	var answered <-chan struct{}
	for {
		select {
		case token = <-tokens:
			answered = token.Done()
		case <-answered:
			return token, token.Error()
		case <-l.conn.dead:
			return nil, l.conn.cause()
		case <-timer.C():
			return nil, errAckTimeout
		}
	}
}

// disconnect ends the connection in an orderly way.
func (l *link) disconnect() {
	l.client.Disconnect(disconnectTimeout)
	l.conn.fail(net.ErrClosed)
	l.unhook()
}

// newClientID adds a random suffix, new for every connection: a broker that has not noticed the end of the last one
// then has nothing to take over.
func newClientID(prefix string) string {
	var suffix [6]byte
	_, _ = rand.Read(suffix[:]) // never fails
	return prefix + "-" + hex.EncodeToString(suffix[:])
}

func (c *bufferedConn) isDead() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}
