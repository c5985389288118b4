package mqtt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/gorilla/websocket"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

func TestOptions(t *testing.T) {
	tests := []struct {
		name    string
		opts    Options
		wantErr string // a part of it; empty for none
	}{
		{name: "defaults", opts: Options{URL: "tcp://broker"}},
		{name: "everything", opts: Options{
			URL: "mqtts://broker:8883", ClientIDPrefix: "x", UsernameFile: "u", PasswordFile: "p", CAFile: "ca", CertFile: "c", KeyFile: "k",
			ServerName: "n", Connections: 64, Window: 32768, KeepAlive: time.Second,
		}},
		{name: "websocket", opts: Options{URL: "wss://broker/mqtt", CAFile: "ca"}},
		{name: "no URL", wantErr: "URL is empty"},
		{name: "no scheme", opts: Options{URL: "broker:1883"}, wantErr: "schemes tcp, mqtt"},
		{name: "other scheme", opts: Options{URL: "http://broker"}, wantErr: "schemes tcp, mqtt"},
		{name: "no host", opts: Options{URL: "tcp://:1883"}, wantErr: "no host"},
		{name: "password with a slash", opts: Options{URL: "tcp://u:pa/secret@broker"}, wantErr: "cannot be parsed"},
		{name: "connections", opts: Options{URL: "tcp://b", Connections: 65}, wantErr: "Connections is 65, must be from 1 to 64"},
		{name: "window", opts: Options{URL: "tcp://b", Window: -1}, wantErr: "Window is -1"},
		{name: "payload", opts: Options{URL: "tcp://b", MaxPayloadBytes: 1 << 28}, wantErr: "MaxPayloadBytes is"},
		{name: "ack timeout", opts: Options{URL: "tcp://b", AckTimeout: -time.Second}, wantErr: "AckTimeout is -1s"},
		{name: "keep alive", opts: Options{URL: "tcp://b", KeepAlive: time.Millisecond}, wantErr: "KeepAlive is 1ms"},
		{name: "client id length", opts: Options{URL: "tcp://b", ClientIDPrefix: strings.Repeat("x", 65)}, wantErr: "ClientIDPrefix has 65"},
		{name: "client id character", opts: Options{URL: "tcp://b", ClientIDPrefix: "a b"}, wantErr: "ClientIDPrefix has a character"},
		{name: "password without user", opts: Options{URL: "tcp://b", PasswordFile: "p"}, wantErr: "PasswordFile is set without"},
		{name: "certificate without key", opts: Options{URL: "ssl://b", CertFile: "c"}, wantErr: "CertFile and KeyFile"},
		{name: "CA without TLS", opts: Options{URL: "tcp://b", CAFile: "c"}, wantErr: "need a URL with TLS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.opts)
			switch {
			case tt.wantErr == "" && err != nil:
				t.Errorf("New: %v", err)
			case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("New: %v, want an error with %q", err, tt.wantErr)
			case err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "pa/")):
				t.Errorf("New: %v shows the password", err)
			}
		})
	}
}

func TestClientIDFitsEveryBroker(t *testing.T) {
	if id := newClientID(DefaultClientIDPrefix); len(id) > 23 {
		t.Errorf("client identifier %s has %d bytes, want at most 23", id, len(id))
	}
}

func TestPasswordChange(t *testing.T) {
	dir := t.TempDir()
	user, password := write(t, dir, "user", "u\n"), write(t, dir, "password", "first\n")
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{})
	var mu sync.Mutex
	var log strings.Builder
	p, err := New(Options{
		URL: strings.Replace(broker.URL(), "//", "//x:inurl@", 1), UsernameFile: user, PasswordFile: password,
		FileCheckInterval: 20 * time.Millisecond,
		// A connection that is given up because this machine is slow would be one more, and send messages again.
		WriteTimeout: time.Minute, AckTimeout: time.Minute, ConnectTimeout: time.Minute,
		Log: funcr.New(func(_, args string) { mu.Lock(); defer mu.Unlock(); log.WriteString(args) }, funcr.Options{Verbosity: 10}),
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, p)
	used := func(password string) int {
		n := 0
		for _, c := range broker.Connects() {
			if c.Username == "u" && c.Password == password {
				n++
			}
		}
		return n
	}
	eventually(t, "both connections use the first password", func() bool { return used("first") == 2 })
	g := newGroup("task", 20000)
	go g.publish(t, p)
	eventually(t, "messages flow", func() bool { return g.settledCount() > 1000 })
	write(t, dir, "password", "second\n")
	eventually(t, "both connections use the second password", func() bool { return used("second") == 2 })
	g.wantAllAcked(t, time.Minute)
	if _, total := sum(broker.Published()); total != 20000 {
		t.Errorf("broker got %d messages, want 20000: renewing a connection sends none twice", total)
	}
	stop()
	for _, secret := range []string{"first", "second", "inurl"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows a password: %s", log.String())
		}
	}
}

func sum(counts map[string]int) (topics, total int) {
	for _, n := range counts {
		total += n
	}
	return len(counts), total
}

func TestWrongPassword(t *testing.T) {
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Skip("mosquitto_passwd is not installed")
	}
	dir := t.TempDir()
	passwords := filepath.Join(dir, "passwords")
	if out, err := exec.CommandContext(t.Context(), tool, "-b", "-c", passwords, "u", "right").CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", tool, err, out)
	}
	broker := mqtttest.StartMosquitto(t, mqtttest.WithPasswordFile(passwords))
	user, password := write(t, dir, "user", "u"), write(t, dir, "password", "wrong")
	p := startPool(t, Options{URL: broker.URL(), UsernameFile: user, PasswordFile: password})
	g := newGroup("task", 10)
	g.publish(t, p)
	<-time.After(300 * time.Millisecond)
	if p.Connected() || g.settledCount() > 0 {
		t.Fatalf("connected with a wrong password: %t, settled %d", p.Connected(), g.settledCount())
	}
	write(t, dir, "password", "right")
	g.wantAllAcked(t, time.Minute)
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, "broker.test")
	otherCert, _ := certificate(t, t.TempDir(), "broker.test")
	broker := mqtttest.StartMosquitto(t, mqtttest.WithTLS(cert, key))
	tests := []struct {
		name          string
		opts          Options
		wantConnected bool
	}{
		{name: "CA and server name", opts: Options{CAFile: cert, ServerName: "broker.test"}, wantConnected: true},
		{name: "host of the URL", opts: Options{CAFile: cert}},
		{name: "other CA", opts: Options{CAFile: otherCert, ServerName: "broker.test"}},
		{name: "system's CAs", opts: Options{ServerName: "broker.test"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.URL = broker.URL()
			p := startPool(t, tt.opts)
			g := newGroup("task", 500)
			dead := g.mortal()
			go g.publish(t, p)
			if tt.wantConnected {
				g.wantAllAcked(t, time.Minute)
				return
			}
			<-time.After(300 * time.Millisecond)
			if p.Connected() {
				t.Error("connected to a broker that should not be trusted")
			}
			dead.Store(true)
			g.await(t, time.Minute)
		})
	}
}

func TestWebsocket(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	bridge := httptest.NewServer(websocketBridge(strings.TrimPrefix(broker.URL(), "tcp://")))
	t.Cleanup(bridge.Close)
	p := startPool(t, Options{URL: strings.Replace(bridge.URL, "http:", "ws:", 1) + "/mqtt"})
	g := newGroup("task", 5000)
	g.publish(t, p)
	g.wantAllAcked(t, time.Minute)
	broker.Kill()
	more := newGroup("task", 500)
	more.publish(t, p)
	broker.Restart()
	more.wantAllAcked(t, time.Minute)
}

// websocketBridge passes the contents of websocket messages on to a TCP address, and back. Not every mosquitto is built
// with websockets.
func websocketBridge(address string) http.HandlerFunc {
	upgrader := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
	return func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = ws.Close() }()
		tcp, err := new(net.Dialer).DialContext(r.Context(), "tcp", address)
		if err != nil {
			return
		}
		defer func() { _ = tcp.Close() }()
		go func() {
			defer func() { _ = ws.Close() }()
			buffer := make([]byte, 4096)
			for {
				n, err := tcp.Read(buffer)
				if err != nil || ws.WriteMessage(websocket.BinaryMessage, buffer[:n]) != nil {
					return
				}
			}
		}()
		for {
			_, data, err := ws.ReadMessage()
			if err != nil {
				return
			}
			if _, err := tcp.Write(data); err != nil {
				return
			}
		}
	}
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	// As Kubernetes does: whoever looks sees the old content or the new one.
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate makes a certificate that is its own CA.
func certificate(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IPAddresses: []net.IP{net.ParseIP("192.0.2.1")},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile = write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	keyFile = write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return certFile, keyFile
}
