package postgres

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Connections bounds how many connections all stores of a process have together. It is
// safe for concurrent use.
//
// A store keeps connections for its next calls. Where another one has no place for a new
// one those of a third are closed that nobody uses.
type Connections struct {
	most int

	mu      sync.Mutex
	open    int
	waiting []chan struct{} // the first comes first
	pools   map[*pgxpool.Pool]bool
}

// NewConnections returns a bound, which is at least 1.
func NewConnections(most int) *Connections {
	return &Connections{most: max(1, most), pools: map[*pgxpool.Pool]bool{}}
}

// Open returns how many connections there are.
func (c *Connections) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// reclaimEvery is how often who waits looks for connections that nobody uses.
const reclaimEvery = 50 * time.Millisecond

// errConnections : no place has become free in time.
var errConnections = errors.New("the connections of this process to databases are all in use (--database-connections-total)")

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// dial returns how to connect within the bound. A nil Connections has none.
func (c *Connections) dial(dial dialFunc) dialFunc {
	if c == nil {
		return dial
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := c.take(ctx); err != nil {
			return nil, err
		}
		conn, err := dial(ctx, network, address)
		if err != nil {
			c.give()
			return nil, err
		}
		return &placed{Conn: conn, give: sync.OnceFunc(c.give)}, nil
	}
}

// placed gives its place back when it is closed.
type placed struct {
	net.Conn
	give func()
}

func (c *placed) Close() error {
	err := c.Conn.Close()
	c.give()
	return err
}

func (c *Connections) take(ctx context.Context) error {
	c.mu.Lock()
	if c.open < c.most {
		c.open++
		c.mu.Unlock()
		return nil
	}
	given := make(chan struct{})
	c.waiting = append(c.waiting, given)
	c.mu.Unlock()
	// One that is in use now may be idle in a moment.
	again := time.NewTicker(reclaimEvery)
	defer again.Stop()
	for ctx.Err() == nil {
		c.reclaim()
		select {
		case <-given:
			return nil
		case <-again.C:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	for i, w := range c.waiting {
		if w == given {
			c.waiting = append(c.waiting[:i:i], c.waiting[i+1:]...)
			c.mu.Unlock()
			return errConnections
		}
	}
	c.mu.Unlock()
	c.give() // it came at the last moment
	return errConnections
}

// give hands a place to who waits longest.
func (c *Connections) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
		c.open--
		return
	}
	close(c.waiting[0])
	c.waiting = c.waiting[1:]
}

// reclaim closes connections that nobody uses.
func (c *Connections) reclaim() {
	c.mu.Lock()
	var most *pgxpool.Pool
	for pool := range c.pools {
		if idle := pool.Stat().IdleConns(); idle > 0 && (most == nil || idle > most.Stat().IdleConns()) {
			most = pool
		}
	}
	c.mu.Unlock()
	if most != nil {
		most.Reset() // those in use are closed when their call has ended
	}
}

// add notes a pool whose connections count. A nil Connections does nothing.
func (c *Connections) add(pool *pgxpool.Pool) {
	if c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pools[pool] = true
	}
}

func (c *Connections) remove(pool *pgxpool.Pool) {
	if c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pools, pool)
	}
}
