package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// Networks are the addresses that a database may have. The zero value is all there are,
// for programs whose user has written the URL himself.
type Networks struct {
	groups   []string
	prefixes []netip.Prefix
	limited  bool
}

// Groups of addresses that [ParseNetworks] knows by name.
const (
	networksPublic    = "public"     // all that are in no other group
	networksPrivate   = "private"    // RFC 1918, RFC 4193, and RFC 6598: those of pods, Services and company networks
	networksLoopback  = "loopback"   // the machine or pod that the program runs in
	networksLinkLocal = "link-local" // RFC 3927, RFC 4291, and wherever else clouds tell their machines what they are
)

// DefaultNetworks returns those that an operator may reach unless its administrator says
// otherwise: databases in the cluster and elsewhere, but not the operator's own pod, nor
// the address at which clouds hand out the credentials of their machines.
func DefaultNetworks() []string { return []string{networksPublic, networksPrivate} }

// ParseNetworks reads a list of CIDR prefixes, addresses, and the words public, private,
// loopback and link-local.
func ParseNetworks(list []string) (Networks, error) {
	n := Networks{limited: true}
	for _, text := range list {
		text = strings.TrimSpace(text)
		switch text {
		case networksPublic, networksPrivate, networksLoopback, networksLinkLocal:
			n.groups = append(n.groups, text)
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, addressErr := netip.ParseAddr(text)
			if addressErr != nil || address.Zone() != "" {
				return Networks{}, fmt.Errorf("%q: must be a network such as 10.0.0.0/8 or fd00::/8, or one of %s, %s, %s, %s",
					text, networksPublic, networksPrivate, networksLoopback, networksLinkLocal)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		n.prefixes = append(n.prefixes, prefix.Masked())
	}
	if len(list) == 0 {
		return Networks{}, errors.New("must name at least one network")
	}
	return n, nil
}

// sharedAddresses are those of RFC 6598, which clouds give to pods.
var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10")

// cloudAddresses are those at which clouds answer their machines that are not link-local.
var cloudAddresses = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS, instance metadata by IPv6
	netip.MustParseAddr("fd20:ce::254"),    // Google Cloud, the same
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud
	netip.MustParseAddr("168.63.129.16"),   // Azure, WireServer
}

// translated are the prefixes behind which an IPv4 address stands that a gateway sends on
// to: RFC 6052, section 2.1, and RFC 3056, with where it begins.
var translated = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
}

// meant returns the address that a packet to this one goes to in the end.
func meant(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	for _, t := range translated {
		if t.prefix.Contains(a) {
			bytes := a.As16()
			return netip.AddrFrom4([4]byte(bytes[t.at : t.at+4]))
		}
	}
	return a
}

// group returns to which group an address belongs; "" for one that no server can have.
func group(a netip.Addr) string {
	switch {
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return ""
	case a.IsLoopback():
		return networksLoopback
	case a.IsLinkLocalUnicast(), slices.Contains(cloudAddresses, a):
		return networksLinkLocal
	case a.IsPrivate() || sharedAddresses.Contains(a):
		return networksPrivate
	default:
		return networksPublic
	}
}

// errNetwork : the address of a database is none of those that are allowed.
var errNetwork = errors.New("the address of the server is not in the networks that the operator's administrator allows (--database-networks)")

// allow returns an error for an address that is not among the networks.
func (n Networks) allow(a netip.Addr) error {
	if !n.limited {
		return nil
	}
	a = a.Unmap().WithZone("")
	if slices.ContainsFunc(n.prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return nil
	}
	if g := group(meant(a)); g != "" && slices.Contains(n.groups, g) {
		return nil
	}
	return errNetwork
}

// control is a [net.Dialer.ControlContext]. It looks at the address that is connected to,
// not at the one that a name had when somebody else asked.
func (n Networks) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return errNetwork
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return errNetwork
	}
	return n.allow(at.Addr())
}

// mostAddresses is how many of the addresses of a name are tried.
const mostAddresses = 4

// lookup returns the first addresses of a name: each of them may take the whole time that
// a connection may take.
func lookup(ctx context.Context, host string) ([]string, error) {
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	return addresses[:min(len(addresses), mostAddresses)], err
}
