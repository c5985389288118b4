package postgres

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

func TestNetworks(t *testing.T) {
	for _, tt := range []struct {
		networks string
		allowed  string
		refused  string
	}{
		{
			"public,private",
			"8.8.8.8 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 fd00::1 2001:4860:4860::8888 ::ffff:10.0.0.1 64:ff9b::808:808",
			"127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1 169.254.169.254 ::ffff:169.254.169.254 fe80::1 fe80::1%eth0 0.0.0.0 :: 224.0.0.1 ff02::1 255.255.255.255 " +
				"fd00:ec2::254 fd20:ce::254 100.100.100.200 168.63.129.16 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1::1 2002:a9fe:a9fe::",
		},
		{"loopback", "127.0.0.1 ::1", "10.0.0.1 8.8.8.8 169.254.0.1"},
		{"link-local", "169.254.169.254 fe80::1 fd00:ec2::254", "127.0.0.1 10.0.0.1"},
		{"10.96.0.0/12, 192.0.2.7", "10.97.1.1 ::ffff:10.97.1.1 192.0.2.7", "10.0.0.1 192.0.2.8 127.0.0.1"},
	} {
		networks, err := ParseNetworks(strings.Split(tt.networks, ","))
		if err != nil {
			t.Fatal(err)
		}
		for list, want := range map[string]bool{tt.allowed: true, tt.refused: false} {
			for address := range strings.FieldsSeq(list) {
				if got := networks.allow(netip.MustParseAddr(address)) == nil; got != want {
					t.Errorf("%s: %s is allowed: %v, want %v", tt.networks, address, got, want)
				}
			}
		}
	}
	for _, bad := range []string{"", "any", "10.0.0.0/33", "example.com", "fe80::1%eth0", "10.0.0.1:5432"} {
		if _, err := ParseNetworks([]string{bad}); err == nil || !strings.Contains(err.Error(), "must be a network such as 10.0.0.0/8") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
	if _, err := ParseNetworks(nil); err == nil {
		t.Error("no network at all is taken")
	}
}

// It is the address that is connected to which counts, whatever name leads there.
func TestNetworksAreOfTheConnection(t *testing.T) {
	server := pgtest.Start(t)
	networks, err := ParseNetworks(DefaultNetworks())
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(server.Address(), ":")
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"} {
		_, err := Open(t.Context(), patient(Options{URL: pgtest.URLVia(t, server.URL(), host+":"+port), Networks: networks}))
		if host == "127.1" { // not every resolver takes it for an address
			if err == nil {
				t.Errorf("%s was connected to", host)
			}
			continue
		}
		if !errors.Is(err, errNetwork) || Reason(err) != errNetwork.Error() {
			t.Errorf("%s: error %v, want %v", host, err, errNetwork)
		}
	}
	if networks, err = ParseNetworks([]string{"loopback"}); err != nil {
		t.Fatal(err)
	}
	open(t, Options{URL: server.URL(), Networks: networks})
}
