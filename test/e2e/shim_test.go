package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	certutil "k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/testenv"
)

// legacy calls the HTTP front with one pair of credentials.
type legacy struct {
	t                   *testing.T
	http                *http.Client
	url                 string
	secretID, secretKey string
}

// call makes a call of V2 and returns its answer; an error is one of the network.
func (l *legacy) call(params map[string]string) (map[string]any, error) {
	answer, err := l.http.Post(l.url+"/v2/index.php", "application/x-www-form-urlencoded", strings.NewReader(l.sign(params)))
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var value map[string]any
	return value, json.NewDecoder(answer.Body).Decode(&value)
}

// sign returns the body of a call.
func (l *legacy) sign(params map[string]string) string {
	signer := qcloud.Signer{Version: qcloud.V2, Host: "iotcloud.api.qcloud.com", SecretID: l.secretID, SecretKey: l.secretKey}
	return qcloud.EncodeForm(signer.Sign(http.MethodPost, time.Now(), params))
}

// good makes a call that must succeed.
func (l *legacy) good(params map[string]string) map[string]any {
	l.t.Helper()
	answer, err := l.call(params)
	if err != nil || answer["code"] != 0.0 {
		l.t.Fatalf("%s is answered %v, %v", params["Action"], answer, err)
	}
	return answer
}

// putCredentials makes a Secret with credentials of the site's account.
func (s *site) putCredentials(name, secretID, secretKey string) {
	s.t.Helper()
	err := s.client.Create(s.t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: map[string]string{v1alpha1.LabelCredentials: "true"}},
		StringData: map[string]string{v1alpha1.CredentialsSecretID: secretID, v1alpha1.CredentialsSecretKey: secretKey},
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// The shim runs as config/components/shim installs it: as its service account, with
// no right that the manifests do not give it.
func TestShimInstalledAsShipped(t *testing.T) {
	env := testenv.Start(t)
	broker := mqtttest.StartMosquitto(t)
	startManager(t, broker.URL())
	kubectl(t, env.KubeConfig, "apply", "--server-side", "-f", filepath.Join("..", "..", "config", "default", "namespace.yaml"))
	kubectl(t, env.KubeConfig, "apply", "--server-side", "-k", filepath.Join("..", "..", "config", "shim"))
	s, late, outside := newSite(t, "door-1"), newSite(t, "door-1"), newSite(t, "door-1")

	serve := func(namespace string) {
		t.Helper()
		kubectl(t, env.KubeConfig, "create", "rolebinding", "batchtask-shim", "--namespace="+namespace,
			"--clusterrole=batchtask-shim", "--serviceaccount="+systemNamespace+":batchtask-shim")
	}
	address := freeAddress(t)
	flags := []string{"shim", "--bind-address=" + address, "--mqtt-url=" + broker.URL(), "--namespace=" + systemNamespace}

	// Two namespaces are named, and in one of them the role is not bound yet: the other is
	// served all the same.
	serve(s.namespace)
	named := start(t, impersonate(t, env.KubeConfig, "batchtask-shim"), append(flags, "--namespaces="+s.namespace+","+late.namespace)...)
	l := &legacy{t, trusting(t, env), "https://" + address, "AKIDe2e" + s.namespace, "key"}
	s.putCredentials("caller", l.secretID, l.secretKey)
	useLegacy(t, s, l)
	s.putCredentials("copy", l.secretID, "another key")
	eventually(t, "an event on the second of two Secrets of one namespace", func() (bool, string) {
		var list eventsv1.EventList
		if err := env.Client.List(t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for i := range list.Items {
			if list.Items[i].Reason == v1alpha1.ReasonDuplicateSecretID {
				seen[list.Items[i].Regarding.Name] = true
			}
		}
		return seen["copy"] && !seen["caller"], fmt.Sprint(seen)
	})
	serve(late.namespace)
	inside := &legacy{t, l.http, l.url, "AKIDinside", "key"}
	late.putCredentials("caller", inside.secretID, inside.secretKey)
	useLegacy(t, late, inside)
	outside.putCredentials("caller", "AKIDoutside", "key")
	unknown := &legacy{t, l.http, l.url, "AKIDoutside", "key"}
	if answer, err := unknown.call(map[string]string{"Action": "DescribeTask", "id": "none"}); err != nil || answer["code"] != 4104.0 {
		t.Errorf("an account of another namespace is answered %v, %v", answer, err)
	}
	named.stop(t)

	// All namespaces, as the component says that is for it.
	kubectl(t, env.KubeConfig, "apply", "--server-side", "-f", filepath.Join("..", "..", "config", "components", "shim-all-namespaces", "role_binding.yaml"))
	everywhere := start(t, impersonate(t, env.KubeConfig, "batchtask-shim"), append(flags, "--all-namespaces")...)
	eventually(t, "an account of any namespace to be served", func() (bool, string) {
		answer, err := unknown.call(map[string]string{"Action": "DescribeTask", "id": "none"})
		return err == nil && answer["code"] == 5000.0, fmt.Sprint(answer, err)
	})
	everywhere.stop(t)
	if text := everywhere.output.tail(1 << 20); strings.Contains(text, "forbidden") {
		t.Error("the shim was refused something, see its log")
	}
}

// trusting returns a client that trusts the authority of the certificate that the shim makes.
func trusting(t *testing.T, env *testenv.Env) *http.Client {
	t.Helper()
	trusted := x509.NewCertPool()
	eventually(t, "the certificate to be made", func() (bool, string) {
		var secret corev1.Secret
		if err := env.Client.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "batchtask-shim-tls"}, &secret); err != nil {
			t.Fatal(err)
		}
		return trusted.AppendCertsFromPEM(secret.Data["ca.crt"]), "the Secret has no ca.crt"
	})
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}}
}

// markReady does what a manager would, where none runs.
func (s *site) markReady() {
	s.t.Helper()
	p := &v1alpha1.Product{}
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "p"}, p); err != nil {
		s.t.Fatal(err)
	}
	meta.SetStatusCondition(&p.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonProductReady})
	if err := s.client.Status().Update(s.t.Context(), p); err != nil {
		s.t.Fatal(err)
	}
}

// useLegacy makes every call once.
func useLegacy(t *testing.T, s *site, l *legacy) {
	t.Helper()
	eventually(t, "the credentials to be accepted", func() (bool, string) {
		answer, err := l.call(map[string]string{"Action": "DescribeTask", "id": "none"})
		return err == nil && answer["code"] == 5000.0, fmt.Sprint(answer, err)
	})
	task := map[string]string{
		"Action": "CreateTask", "taskType": "PublishMessage", "productID": s.product, "deviceNameFilter": "^door",
		"scheduleTimeInSeconds": "0", "tasks": `{"publishMessageTask":{"payload":"close", "topic":"event"}}`,
	}
	id, _ := l.good(task)["taskId"].(string)
	eventually(t, "the task to be done", func() (bool, string) {
		told := l.good(map[string]string{"Action": "DescribeTask", "id": id})
		return told["status"] == 3.0 && told["doneDeviceCnt"] == 1.0, fmt.Sprint(told)
	})
	task["scheduleTimeInSeconds"] = strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	id, _ = l.good(task)["taskId"].(string)
	l.good(map[string]string{"Action": "CancelTask", "id": id})
	about := func(action string, more map[string]string) map[string]string {
		params := map[string]string{"Action": action, "productID": s.product, "deviceName": "door-1"}
		maps.Copy(params, more)
		return params
	}
	l.good(about("Publish", map[string]string{"topic": s.product + "/door-1/event", "payload": "close"}))
	updated, _ := l.good(about("UpdateDeviceShadow", map[string]string{"state": `{"desired":{"state":"open"}}`}))["data"].(map[string]any)
	read, _ := l.good(about("GetDeviceShadow", nil))["data"].(map[string]any)
	for _, data := range []map[string]any{updated, read} {
		payload, _ := data["payload"].(map[string]any)
		if state, _ := payload["state"].(map[string]any); !cmp.Equal(state["desired"], map[string]any{"state": "open"}) || payload["version"] != 1.0 {
			t.Errorf("the shadow is told as %v", data)
		}
	}
	if list := l.good(map[string]string{"Action": "ListTasks", "pageNum": "1", "pageSize": "10"}); list["taskTotalCount"] != 2.0 {
		t.Errorf("ListTasks is answered %v", list)
	}
}

// Certificates are read again when they change, and what is in flight when the shim
// is told to end is finished.
func TestShimTLSAndShutdown(t *testing.T) {
	env := testenv.Start(t)
	s := newSite(t, "door-1")
	s.markReady()
	broker := mqtttest.StartMosquitto(t)
	s.putCredentials("caller", "AKIDtls"+s.namespace, "key")
	dir := t.TempDir()
	trusted := x509.NewCertPool()
	first := putCertificate(t, dir, trusted)
	address := freeAddress(t)
	shim := start(t, env.KubeConfig, "shim", "--all-namespaces", "--bind-address="+address, "--mqtt-url="+broker.URL(),
		"--tls-cert-file="+filepath.Join(dir, "tls.crt"), "--tls-key-file="+filepath.Join(dir, "tls.key"))

	config := &tls.Config{RootCAs: trusted}
	l := &legacy{t, &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}, "https://" + address, "AKIDtls" + s.namespace, "key"}
	eventually(t, "an answer over TLS", func() (bool, string) {
		answer, err := l.call(map[string]string{"Action": "DescribeTask", "id": "none"})
		return err == nil && answer["code"] == 5000.0, fmt.Sprint(answer, err)
	})
	second := putCertificate(t, dir, trusted)
	eventually(t, "the new certificate to be served", func() (bool, string) {
		conn, err := tls.Dial("tcp", address, config)
		if err != nil {
			return false, err.Error()
		}
		defer conn.Close()
		served := conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
		return served == second && served != first, served
	})
	if answer, err := l.call(map[string]string{"Action": "DescribeTask", "id": "none"}); err != nil || answer["code"] != 5000.0 {
		t.Errorf("after that the answer is %v, %v", answer, err)
	}

	// The shim is at a call of which half has arrived when it is told to end: it has asked
	// for the rest. The call needs the broker.
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := l.sign(map[string]string{
		"Action": "Publish", "productID": s.product, "deviceName": "door-1", "topic": s.product + "/door-1/event", "payload": "close",
	})
	fmt.Fprintf(conn, "POST /v2/index.php HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n%s", address, len(body), body[:10])
	answers := bufio.NewReader(conn)
	begun, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatalf("half of a call is not answered: %v", err)
	}
	defer begun.Body.Close()
	if begun.StatusCode != http.StatusContinue {
		t.Fatalf("half of a call is answered %s", begun.Status)
	}
	if err := shim.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new callers to be turned away", func() (bool, string) {
		late, err := net.Dial("tcp", address)
		if err == nil {
			_ = late.Close()
		}
		return err != nil, ""
	})
	if _, err := io.WriteString(conn, body[10:]); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatalf("the call in flight was dropped: %v", err)
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	if !bytes.Contains(text, []byte(`"code":0`)) {
		t.Errorf("the call in flight is answered %q", text)
	}
	select {
	case <-shim.ended:
		if code := shim.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit status %d", code)
		}
	case <-time.After(patience):
		t.Error("the shim does not end")
	}
}

// putCertificate makes a certificate, puts it where the shim reads it, and returns
// its serial number.
func putCertificate(t *testing.T, dir string, trusted *x509.CertPool) (serial string) {
	t.Helper()
	certificate, key, err := certutil.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.ParseIP("127.0.0.1")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	trusted.AppendCertsFromPEM(certificate)
	for name, content := range map[string][]byte{"tls.key": key, "tls.crt": certificate} {
		if err := os.WriteFile(filepath.Join(dir, name+".next"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, name+".next"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	block, _ := pem.Decode(certificate)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.SerialNumber.String()
}
