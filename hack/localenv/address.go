package localenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// listener is a part that others reach at an address that they can choose.
type listener struct {
	name   string // for messages
	wanted string // host:port, port 0 for any free one; empty for no wish
	usual  string // where it listens if nothing is wanted
	advice string // how to choose
}

// address returns the address to listen on, with a port that is free: if nothing
// is wanted the usual one or, where that is taken, any, with a note that says so.
func (l listener) address(ctx context.Context) (address, note string, err error) {
	wanted := l.wanted
	if wanted == "" {
		wanted = l.usual
	}
	address, err = freeAddress(ctx, wanted)
	if l.wanted == "" && errors.Is(err, syscall.EADDRINUSE) {
		address, err = freeAddress(ctx, "127.0.0.1:0")
		note = fmt.Sprintf(", as %s is taken (%s)", wanted, l.advice)
	}
	if err != nil {
		return "", "", fmt.Errorf("%s cannot listen on %s: %w (%s)", l.name, wanted, err, l.advice)
	}
	return address, note, nil
}

// freeAddress returns address with a free port in place of port 0. Another
// program may take that port before it is used; the one that wanted it then says
// so.
func freeAddress(ctx context.Context, address string) (string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String(), nil
}

// servingAddresses returns where a program may show its metrics and its health.
func servingAddresses(ctx context.Context, program string) (metrics, probe string, err error) {
	for _, address := range []*string{&metrics, &probe} {
		if *address, err = freeAddress(ctx, "127.0.0.1:0"); err != nil {
			return "", "", fmt.Errorf("looking for a free port for %s: %w", program, err)
		}
	}
	return metrics, probe, nil
}

// reachable is the address by which to connect to a listener on address.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}
