package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// What a server may send. Whoever reads its answers makes room for a whole message as soon
// as its first five bytes have come, so these look at those bytes before anybody else.
const (
	// maxRow bounds a message with a row (PostgreSQL, frontend/backend protocol: DataRow),
	// or with a part of a COPY. The largest that an honest server sends has a shadow's three
	// documents, 640 KiB, or the names of a recorded range of a task.
	maxRow = 16 << 20
	// maxOther bounds all other messages: errors, notices, descriptions, what is said at login.
	maxOther = 1 << 20
	// maxSmallRow is how large a message may be without a share of largeRows.
	maxSmallRow = 1 << 20
	// maxLargeRows bounds all messages over maxSmallRow that the process has room for at once.
	maxLargeRows = 64 << 20
	// maxAuthentication bounds a message of the login, and maxIterations what it may cost us: how
	// often the password is hashed (RFC 5802, iteration-count; PostgreSQL has 4096 if not told
	// otherwise). 100,000 take some hundredths of a second.
	maxAuthentication, maxIterations = 8 << 10, 100_000
	// maxStatus bounds the messages of a connection that nobody has asked for
	// (ParameterStatus), since the driver keeps what they say.
	maxStatus = 1 << 20
	// maxPreparing bounds all that a connection reads that looks at the tables or changes them:
	// what does that keeps the rows of the table of versions, however many it has.
	maxPreparing = 4 << 20
	// maxWhileWriting bounds what a server may send while it does not read what is sent to it,
	// which the driver keeps.
	maxWhileWriting = 4 << 20
)

var largeRows = semaphore.NewWeighted(maxLargeRows)

var (
	errTooLarge   = errors.New("the server has sent a message that is larger than any that was asked for")
	errProtocol   = errors.New("the server does not speak the protocol of PostgreSQL")
	errIterations = errors.New("the server asks for the password to be hashed more often than 100,000 times (scram_iterations)")
	errNoRoom     = errors.New("there is no room for the large message of a server beside those of others")
)

// limited is a connection, after TLS, that ends with an error where the server sends more
// than it may.
type limited struct {
	net.Conn
	// left is how much may yet be read, if bounded is set.
	bounded bool
	left    int
	// header is that of the next message, of which have bytes are there; rest is how much of
	// the current one is still to come. All are of the one goroutine that reads.
	header [5]byte
	have   int
	rest   int64
	status int64
	failed error
	// login is a message of the login, as far as it has come, while loggingIn is set.
	login     []byte
	loggingIn bool

	writing atomic.Bool
	unread  atomic.Int64 // read while writing
	closed  atomic.Bool
	held    atomic.Int64 // large, to be given back once, by who reads or by who closes
}

// Write notes that the server may be waiting, too.
func (l *limited) Write(p []byte) (int, error) {
	l.unread.Store(0)
	l.writing.Store(true)
	defer l.writing.Store(false)
	return l.Conn.Write(p)
}

// Read returns an error in the place of what is too much.
func (l *limited) Read(p []byte) (int, error) {
	if l.failed != nil {
		return 0, l.failed
	}
	n, err := l.Conn.Read(p)
	if l.writing.Load() && l.unread.Add(int64(n)) > maxWhileWriting {
		l.failed = errTooLarge
	}
	if l.left -= n; l.bounded && l.left < 0 {
		l.failed = errTooLarge
	}
	if l.failed == nil {
		l.failed = l.follow(p[:n])
	}
	if l.failed != nil {
		return 0, l.failed
	}
	return n, err
}

// follow goes through what was read, from message to message.
func (l *limited) follow(p []byte) error {
	for len(p) > 0 {
		if l.rest > 0 {
			step := min(l.rest, int64(len(p)))
			l.rest -= step
			if l.loggingIn {
				l.login = append(l.login, p[:step]...)
				if l.rest == 0 && tooManyIterations(l.login) {
					return errIterations
				}
			}
			p = p[step:]
			continue
		}
		n := copy(l.header[l.have:], p)
		l.have += n
		p = p[n:]
		if l.have < len(l.header) {
			return nil
		}
		l.have = 0
		if err := l.begin(l.header[0], int64(binary.BigEndian.Uint32(l.header[1:]))-4); err != nil {
			return err
		}
	}
	return nil
}

// begin looks at the message that comes: its kind, and the length of its body.
func (l *limited) begin(kind byte, length int64) error {
	l.release()
	const dataRow, copyData, parameterStatus, authentication = 'D', 'd', 'S', 'R'
	most := int64(maxOther)
	l.loggingIn, l.login = kind == authentication, nil
	switch kind {
	case authentication:
		most = maxAuthentication
	case dataRow, copyData:
		most = maxRow
	case parameterStatus:
		if l.status += length; l.status > maxStatus {
			return errTooLarge
		}
	}
	switch {
	case length < 0:
		return errProtocol
	case length > most:
		return errTooLarge
	case length > maxSmallRow:
		// Nobody waits: who had the room could wait for this one.
		if !largeRows.TryAcquire(length) {
			return errNoRoom
		}
		l.held.Store(length)
		if l.closed.Load() {
			l.release()
		}
	}
	l.rest = length
	return nil
}

func (l *limited) release() {
	if held := l.held.Swap(0); held > 0 {
		largeRows.Release(held)
	}
}

// Close closes the connection.
func (l *limited) Close() error {
	l.closed.Store(true)
	l.release()
	return l.Conn.Close()
}

// tooManyIterations looks for what AuthenticationSASLContinue asks for: "r=…,s=…,i=4096".
func tooManyIterations(message []byte) bool {
	const saslContinue = 11
	if len(message) < 4 || binary.BigEndian.Uint32(message) != saslContinue {
		return false
	}
	for part := range bytes.SplitSeq(message[4:], []byte{','}) {
		if text, is := bytes.CutPrefix(part, []byte("i=")); is {
			n, err := strconv.Atoi(string(text))
			return err != nil || n > maxIterations
		}
	}
	return false
}
