{{/* SPDX-License-Identifier: MIT OR Apache-2.0 */}}
{{/* Names and labels, and what several objects must agree on. */}}

{{- define "lb-agent.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "lb-agent.fullname" -}}
{{- $name := include "lb-agent.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $full | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* They select the pods of the DaemonSet, and never change: Kubernetes refuses that. */}}
{{- define "lb-agent.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lb-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "lb-agent.labels" -}}
{{ include "lb-agent.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: lb
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "lb-agent.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "lb-agent.fullname" .) -}}
{{- end -}}

{{- define "lb-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The file of --config: every value that is not null and no empty list. */}}
{{- define "lb-agent.config" -}}
{{- $config := dict -}}
{{- range $key, $value := .Values.config -}}
{{- if not (or (kindIs "invalid" $value) (and (kindIs "slice" $value) (empty $value))) -}}
{{- $_ := set $config $key $value -}}
{{- end -}}
{{- end -}}
{{- with .Values.k8sServiceHost -}}
{{- $host := contains ":" . | ternary (printf "[%s]" .) . -}}
{{- $_ := set $config "apiServer" (printf "https://%s:%d" $host (int $.Values.k8sServicePort)) -}}
{{- end -}}
{{ toYaml $config }}
{{- end -}}

{{/* The port of a value ADDRESS:PORT; empty for `none`. Takes the value and its default. */}}
{{- define "lb-agent.port" -}}
{{- $address := index . 0 | default (index . 1) -}}
{{- if ne $address "none" -}}{{ regexFind "[0-9]+$" $address }}{{- end -}}
{{- end -}}

{{- define "lb-agent.healthzPort" -}}
{{ include "lb-agent.port" (list .Values.config.healthzBindAddress "[::]:10256") }}
{{- end -}}
{{- define "lb-agent.probePort" -}}
{{ include "lb-agent.port" (list .Values.config.probeBindAddress "127.0.0.1:10246") }}
{{- end -}}
{{- define "lb-agent.metricsPort" -}}
{{ include "lb-agent.port" (list .Values.config.metricsBindAddress "127.0.0.1:10249") }}
{{- end -}}

{{/* Where the kubelet, on the node's own network, reaches a server that listens there: IPv6's loopback only where it must. */}}
{{- define "lb-agent.probeHost" -}}
{{- $host := .Values.config.probeBindAddress | default "127.0.0.1:10246" | trimSuffix (printf ":%s" (include "lb-agent.probePort" .)) | trimAll "[]" -}}
{{- if has $host (list "0.0.0.0" "::") -}}127.0.0.1{{- else -}}{{ $host }}{{- end -}}
{{- end -}}

{{/* One probe: what is asked for, and how often. */}}
{{- define "lb-agent.probe" -}}
{{- $root := index . 0 -}}
httpGet:
  host: {{ include "lb-agent.probeHost" $root | quote }}
  port: {{ include "lb-agent.probePort" $root }}
  path: {{ index . 1 }}
{{ toYaml (index . 2) }}
{{- end -}}

{{/* A profile of seccomp or AppArmor, without what is null. */}}
{{- define "lb-agent.profile" -}}
type: {{ .type }}
{{- with .localhostProfile }}
localhostProfile: {{ . }}
{{- end -}}
{{- end -}}

{{/* The arguments of a way back. */}}
{{- define "lb-agent.cleanup" -}}
- cleanup
- --bpffs={{ .Values.config.bpffs }}
- --cgroup={{ .Values.config.cgroup }}
{{- if .Values.cleanup.drain }}
- --drain
{{- with .Values.cleanup.timeoutSeconds }}
- --timeout={{ int . }}
{{- end }}
{{- end }}
{{- if and .Values.cleanup.state .Values.config.stateDir }}
- --state
- --state-dir={{ .Values.config.stateDir }}
{{- end }}
{{- end -}}
