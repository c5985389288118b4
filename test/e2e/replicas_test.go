package e2e

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"batchtask.dev/operator/internal/testenv"
)

// Times of a Lease that others take after five seconds of silence. A leader is in doubt
// after a second and a half.
var shortLease = []string{
	"--leader-elect-lease-duration=5s", "--leader-elect-renew-deadline=3s", "--leader-elect-retry-period=500ms",
}

// replicas are managers of which one is elected.
type replicas struct {
	t          *testing.T
	kubeConfig []byte
	args       []string
	running    []*process
}

// startReplicas starts two managers that reach the API server over the line.
func startReplicas(t *testing.T, line *apiLine, namespace, brokerURL string, flags ...string) *replicas {
	t.Helper()
	r := &replicas{t: t, kubeConfig: line.kubeConfig(t), args: append([]string{
		"manager", "--mqtt-url=" + brokerURL, "--webhooks=false", "--leader-elect", "--namespace=" + namespace,
	}, append(flags, shortLease...)...)}
	r.add()
	r.leader()
	r.add()
	return r
}

func (r *replicas) add() { r.running = append(r.running, start(r.t, r.kubeConfig, r.args...)) }

// leader waits until a replica is elected, and returns it.
func (r *replicas) leader() *process {
	r.t.Helper()
	var leader *process
	eventually(r.t, "a leader", func() (bool, string) {
		for _, p := range r.running {
			if p.hasEnded() {
				continue
			}
			if strings.Contains(p.output.tail(1<<30), "uccessfully acquired lease") {
				leader = p
			}
		}
		return leader != nil, ""
	})
	return leader
}

// replace waits until a replica has ended, and starts another one, as Kubernetes does.
func (r *replicas) replace(old *process) {
	r.t.Helper()
	eventually(r.t, "the old leader to end", func() (bool, string) { return old.hasEnded(), "" })
	for i, p := range r.running {
		if p == old {
			r.running = append(r.running[:i:i], r.running[i+1:]...)
			break
		}
	}
	r.add()
}

func (m *process) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// apiLine stands between managers and the API server, and can fall silent: what is sent
// does not arrive, and nobody is told.
type apiLine struct {
	listener net.Listener
	server   string
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	open  chan struct{} // closed while the line is open
}

func newAPILine(t *testing.T) *apiLine {
	t.Helper()
	server, err := url.Parse(testenv.Start(t).Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	host := server.Host
	if host == "" { // without a scheme
		host = testenv.Start(t).Config.Host
	}
	var lc net.ListenConfig
	l, err := lc.Listen(context.WithoutCancel(t.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &apiLine{listener: l, server: host, conns: map[net.Conn]struct{}{}, open: make(chan struct{})}
	close(p.open)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.speak()
		p.running.Wait()
	})
	return p
}

func (p *apiLine) kubeConfig(t *testing.T) []byte {
	t.Helper()
	config, err := clientcmd.Load(testenv.Start(t).KubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, cluster := range config.Clusters {
		cluster.Server = "https://" + p.listener.Addr().String()
		cluster.TLSServerName = "localhost"
	}
	content, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// fallSilent holds everything back until speak.
func (p *apiLine) fallSilent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = make(chan struct{})
}

func (p *apiLine) speak() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

func (p *apiLine) wait() {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	<-open
}

func (p *apiLine) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() {
			defer client.Close()
			p.wait()
			server, err := net.Dial("tcp", p.server)
			if err != nil {
				return
			}
			defer server.Close()
			p.mu.Lock()
			p.conns[client], p.conns[server] = struct{}{}, struct{}{}
			p.mu.Unlock()
			var both sync.WaitGroup
			both.Go(func() { p.copy(client, server) })
			both.Go(func() { p.copy(server, client) })
			both.Wait()
			p.mu.Lock()
			delete(p.conns, client)
			delete(p.conns, server)
			p.mu.Unlock()
		})
	}
}

func (p *apiLine) copy(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		p.wait()
		if n > 0 {
			if _, failed := to.Write(buffer[:n]); failed != nil {
				err = failed
			}
		}
		if err != nil {
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}
